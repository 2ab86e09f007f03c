"""Ranged reads of S3 objects by obstore, a compiled client that takes the interpreter's lock once per read.

s3fs receives on one thread of Python code: beside threads that decode, it waits for the lock at every piece
that arrives, and falls to a third of its rate or less (`benchmarks/object_stores.py`). So ranges are read
here, at the address and with the credentials that s3fs found. What this client cannot do (follow a bucket to
another region, trust a private certificate authority, …) is left to s3fs, as is everything but reading.
"""

import atexit
import os
import re
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import obstore
from fsspec.asyn import sync
from obstore.exceptions import BaseError, GenericError
from obstore.store import S3Store

from shards.file_system import STALL_SECONDS
from shards.ranged_reads import FoundRange, FsspecReads
from shards.retry import ShortRead, is_transient
from shards.upload import CONNECT_SECONDS

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3CredentialProvider

_TRY_SECONDS = 600  # how long a try may take at all
# obstore asks for credentials again when they have less than 5 minutes left; s3fs renews them by itself, at
# least 10 minutes before they expire.
_CREDENTIALS_LAST = timedelta(minutes=10)
_PAST_THE_END = 416


class NoAnswer(ConnectionError):
    """No whole answer came, or one whose `status` is no success (None: none came)."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class Refused(Exception):
    """This client cannot read here, and trying again would not help; s3fs may be able to."""


class ObjectReads:
    """Reads from one bucket of S3, given the file system of s3fs for it."""

    _process: ClassVar[int | None] = None  # the one that has obstore's threads, which do not survive a fork

    def __init__(self, fs: Any, bucket: str) -> None:
        self._fs, self._bucket = fs, bucket
        self._general = FsspecReads(fs)
        self._opening = threading.Lock()
        self._store: S3Store | None = None
        self._can = True

    def read(self, path: str, start: int, length: int) -> FoundRange:
        """See `RangedReads`; NoAnswer where the same may succeed later."""
        if self._can:
            try:
                return _read(self._open(), self._fs.split_path(path)[1], start, length)
            except Refused as error:
                refusal = error
        found = self._general.read(path, start, length)
        if self._can:
            self._can = False
            address = f"s3://{self._bucket}"
            print(f"{address}: read by s3fs, which is slower: {refusal}", file=sys.stderr, flush=True)
        return found

    def _open(self) -> S3Store:
        with self._opening:
            if self._store is None:
                if ObjectReads._process not in (None, os.getpid()):
                    raise Refused("this process was forked from one that reads there, and not spawned")
                ObjectReads._process = os.getpid()
                self._store = _store(self._fs, self._bucket)
            return self._store


def _store(fs: Any, bucket: str) -> S3Store:
    """What reads a bucket as the file system does: at its address, with its credentials."""
    client = fs.s3
    endpoint = client.meta.endpoint_url
    credentials = None if fs.anon else client._get_credentials()
    return S3Store(
        bucket,
        endpoint=endpoint,
        region=client.meta.region_name,
        skip_signature=credentials is None,
        credential_provider=_provider(fs, credentials) if credentials else None,
        retry_config={"max_retries": 0},  # `shards.retry` alone tries again
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=STALL_SECONDS),
            "timeout": timedelta(seconds=_TRY_SECONDS),
        },
    )


def _provider(fs: Any, credentials: Any) -> "S3CredentialProvider":
    """What tells a store the credentials of now."""

    def current() -> "S3Credential":
        frozen = sync(fs.loop, credentials.get_frozen_credentials)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
        }

    return current


class _ReadsUnderWay:
    """Reads in obstore: one that returns while the interpreter ends would abort the process, so none begins
    any more then, and those under way are given half a second. (One that hangs does not return.)
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._number = 0
        self._ending = False
        atexit.register(self._end)
        os.register_at_fork(after_in_child=lambda: atexit.unregister(self._end))

    def __enter__(self) -> None:
        with self._changed:
            if self._ending:
                raise NoAnswer("the process is ending", None)
            self._number += 1

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._number -= 1
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.wait_for(lambda: not self._number, timeout=0.5)


_reads_under_way = _ReadsUnderWay()


def _read(store: S3Store, key: str, start: int, length: int) -> FoundRange:
    try:
        with _reads_under_way:
            try:
                answer = obstore.get(store, key, options={"range": (start, start + length)})
                data, facts = memoryview(answer.bytes()), answer.meta
            except GenericError as error:
                if _status(error) != _PAST_THE_END:
                    raise
                data, facts = memoryview(b""), obstore.head(store, key)
    except (BaseError, ValueError) as error:
        raise _understood(error) from error
    there = max(0, min(facts["size"] - start, length))
    if len(data) < there:
        raise ShortRead(f"{len(data):,} bytes came of the {there:,} that are there")
    return FoundRange(data, facts["size"], facts["e_tag"])


def _understood(error: Exception) -> Exception:
    """NoAnswer where trying again may help, otherwise Refused."""
    text, _, details = str(error).partition("\n\nDebug source")
    if "certificate" in details.lower():
        return Refused("the server's certificate is not trusted (SSL_CERT_FILE can name its authority)")
    said = re.search("<Message>(.+?)</Message>", text)
    causes = re.findall(r'(?:message|error): "([^"]+)"|(Timeout|IncompleteBody)', details)
    message = said[1] if said else text.rpartition(" - ")[2]
    if causes and not said:
        message += f" ({''.join(causes[-1])})"
    trouble = NoAnswer(message, _status(error))
    return trouble if isinstance(error, GenericError) and is_transient(trouble) else Refused(message)


def _status(error: Exception) -> int | None:
    """The HTTP status that a server answered with, if it did; obstore only writes it into its text."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None
