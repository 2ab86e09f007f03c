"""Trying again what a remote storage failed to do, where trying again can help."""

import random
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

# Seconds to wait after the first failure, the second, …: a hiccup costs little, an outage of half a minute is
# outlasted. Each is shortened by chance, to as little as half, so that clients do not come back all at once.
DELAYS = (0.1, 0.5, 2.5, 10.0, 30.0)
TRIES = len(DELAYS) + 1
_TRIES_IN_SILENCE = 3
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
_NO_ANSWER = ("TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError")
# What the libraries below fsspec raise where no whole answer came.
_LIBRARY_ERRORS = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "botocore.exceptions": ("ConnectionError", "HTTPClientError"),
    "botocore.parsers": ("ResponseParserError",),
    "httpx": _NO_ANSWER,
    "httpx2": _NO_ANSWER,
    "requests": ("ConnectionError", "Timeout"),
}
# What they raise where they have nothing to sign a request with.
_CREDENTIAL_ERRORS = {
    "botocore.exceptions": (
        "CredentialRetrievalError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "SSOError",
        "TokenRetrievalError",
    ),
}
_REFUSED_STATUS = {401, 403}
# Codes that S3 gives with status 400. The last is what a request for an object's size has in place of one,
# whose answer has no text: S3 gives it that status where a token has expired.
_REFUSED_CODES = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "400"}
_chance = random.SystemRandom()  # the program's own random numbers stay as they are

Result = TypeVar("Result")


class StillFailing(Exception):
    """Trouble that came back at every try; the text is that of the last one. tries: how many there were."""

    def __init__(self, trouble: str, tries: int) -> None:
        super().__init__(trouble)
        self.tries = tries


class ShortRead(ConnectionError):
    """Storage answered with fewer bytes than there are."""


class Stopped(Exception):
    """The work was given up while it waited for the next try."""


@dataclass
class Attempts:
    """How one piece of work goes that `retry` does, for other threads to see and to stop.

    patience: seconds after its begin up to which a try may still begin, where `DELAYS` have all been waited.
    stop: set, it ends a wait for the next try. tries: of the present request. failures: tries that failed, of
    all requests; trouble: what the last of them met.
    """

    patience: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    tries: int = 0
    failures: int = 0
    trouble: str = ""


_attempts: ContextVar[Attempts | None] = ContextVar("attempts", default=None)


@contextmanager
def recorded(attempts: Attempts) -> Iterator[None]:
    """Inside, `retry` on this thread writes to `attempts` what it does, and follows its patience and stop."""
    token = _attempts.set(attempts)
    try:
        yield
    finally:
        _attempts.reset(token)


def retry(work: Callable[[], Result]) -> Result:
    """What `work` returns, after up to `TRIES` tries (more where `Attempts` has the patience).

    Raises StillFailing where all of them met transient trouble; any other exception at once, as it is.
    """
    watched = _attempts.get()  # by a stream, which says itself what takes long
    attempts = watched or Attempts()
    begin, tries = time.monotonic(), 0
    while True:
        tries += 1
        attempts.tries = tries
        try:
            return work()
        except Exception as error:
            if not is_transient(error):
                raise
            attempts.failures += 1
            attempts.trouble = str(error) or type(error).__name__
            delay = DELAYS[min(tries, len(DELAYS)) - 1] * _chance.uniform(0.5, 1.0)
            if tries >= TRIES and time.monotonic() + delay - begin > attempts.patience:
                raise StillFailing(attempts.trouble, tries) from error
        if watched is None and tries == _TRIES_IN_SILENCE:
            print(f"{attempts.trouble}; trying again for up to a minute", file=sys.stderr, flush=True)
        if attempts.stop.wait(delay):
            raise Stopped(attempts.trouble)


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
    return isinstance(
        error, (ConnectionError, TimeoutError, socket.gaierror, *_known_errors(_LIBRARY_ERRORS))
    )


def is_refusal(error: BaseException) -> bool:
    """Whether a server refused who asks, or nobody could be named to it: credentials that are missing, wrong
    or expired, or that do not allow this.
    """
    return any(_is_refusal(cause) for cause in _with_causes(error))


def _is_refusal(error: BaseException) -> bool:
    status, code = _answer(error)
    if status in _REFUSED_STATUS or code in _REFUSED_CODES:
        return True
    return isinstance(error, (PermissionError, *_known_errors(_CREDENTIAL_ERRORS)))


def _known_errors(names_by_module: Mapping[str, Sequence[str]]) -> Iterator[type[BaseException]]:
    """The exceptions of these modules; one of a library that was never imported cannot have been raised."""
    for module, names in names_by_module.items():
        if module in sys.modules:
            yield from (getattr(sys.modules[module], name) for name in names)


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
    for source, name in (
        (error, "status"),  # aiohttp
        (error, "status_code"),  # Azure
        (error, "code"),  # Google
        (response, "status_code"),  # Hugging Face, as requests and httpx have it
    ):
        status = getattr(source, name, None)
        if isinstance(status, int):
            return status, ""
    return None, ""
