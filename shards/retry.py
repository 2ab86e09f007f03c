"""Trying again what a remote storage failed to do, where trying again can help."""

import random
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

# Seconds to wait after the first failure, the second, …: a hiccup costs little, an outage of half a minute is
# outlasted. Each is shortened by chance, to as little as half, so that clients do not come back all at once.
DELAYS = (0.1, 0.5, 2.5, 10.0, 30.0)
TRIES = len(DELAYS) + 1
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
# Codes that S3 gives with a status which alone would mean a wrong request.
_TRANSIENT_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
# What the libraries below fsspec raise where no whole answer came.
_LIBRARY_ERRORS = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "botocore.exceptions": ("ConnectionError", "HTTPClientError"),
    "botocore.parsers": ("ResponseParserError",),
    "requests": ("ConnectionError", "Timeout"),
}
_chance = random.SystemRandom()  # the program's own random numbers stay as they are

Result = TypeVar("Result")


class StillFailing(Exception):
    """Trouble that came back at every try; the text is that of the last one."""


class ShortRead(ConnectionError):
    """Storage answered with fewer bytes than there are."""


def retry(work: Callable[[], Result]) -> Result:
    """What `work` returns, after up to `TRIES` tries.

    Raises StillFailing where all of them met transient trouble; any other exception at once, as it is.
    """
    delays = iter(DELAYS)
    while True:
        try:
            return work()
        except Exception as error:
            if not is_transient(error):
                raise
            delay = next(delays, None)
            if delay is None:
                raise StillFailing(str(error) or type(error).__name__) from error
        time.sleep(delay * _chance.uniform(0.5, 1.0))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later: an overloaded or restarting server, a connection
    that broke, timed out or could not be made. A refusal (403, 404, wrong credentials) is not.
    """
    causes = list(_with_causes(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return False
    return any(_is_transient(cause) for cause in causes)


def _is_transient(error: BaseException) -> bool:
    status, code = _answer(error)
    if status is not None:
        return status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
    library_errors = (
        getattr(sys.modules[module], name)
        for module, names in _LIBRARY_ERRORS.items()
        if module in sys.modules  # an error of a library that was never imported cannot be
        for name in names
    )
    return isinstance(error, (ConnectionError, TimeoutError, socket.gaierror, *library_errors))


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _answer(error: BaseException) -> tuple[int | None, str]:
    """The HTTP status and the storage's own code in an error that a server answered with, if it is one."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status, code
    for name in ("status", "status_code", "code"):  # aiohttp, Azure, Google
        status = getattr(error, name, None)
        if isinstance(status, int):
            return status, ""
    return None, ""
