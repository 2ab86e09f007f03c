"""A proxy before an HTTP server that breaks what passes: a real socket, at requests that a schedule names.

    with faulty_s3(random_faults(seed=1)) as proxy:
        Folder("s3://bucket/set").write("a", b"...")

A schedule is a function of a request's number (from 0) and line ("PUT /bucket/key?partNumber=1", and where it
asks for a range, "GET /bucket/key bytes=0-9") to the name of a fault, or None to let it pass.
"""

import http.client
import itertools
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import s3fs

Schedule = Callable[[int, str], str | None]

UNAVAILABLE = "unavailable"  # 503 SlowDown; the server never hears of the request
THROTTLED = "throttled"  # 429 TooManyRequests, likewise
ERROR = "error"  # 500 InternalError, likewise
DENIED = "denied"  # 403 AccessDenied, likewise
EXPIRED = "expired"  # 400 ExpiredToken, likewise
GONE = "gone"  # 404 NoSuchUpload, likewise
RESET_BEFORE = "reset before"  # the connection is reset; the server never hears of the request
RESET_AFTER = "reset after"  # the server does the work, then the connection is reset instead of its answer
TRUNCATED = "truncated"  # the answer announces its whole length, half of it comes, the connection closes
SHORT = "short"  # the answer is whole to look at, but holds and announces half of the bytes
SLOW = "slow"  # the answer trickles
HANG = "hang"  # no answer comes, and the connection stays open
STALL = "stall"  # half of the answer comes, then nothing more, and the connection stays open
CORRUPT = "corrupt"  # the answer is whole, and one byte in its middle is another
TRANSIENT = (UNAVAILABLE, ERROR, RESET_BEFORE, RESET_AFTER, TRUNCATED, SLOW)

_REFUSALS = {
    UNAVAILABLE: (503, "SlowDown", "Please reduce your request rate."),
    THROTTLED: (429, "TooManyRequests", "Too many requests."),
    ERROR: (500, "InternalError", "We encountered an internal error. Please try again."),
    DENIED: (403, "AccessDenied", "Access Denied"),
    EXPIRED: (400, "ExpiredToken", "The provided token has expired."),
    GONE: (404, "NoSuchUpload", "The specified upload does not exist."),
}


def random_faults(seed: int, share: float = 0.3, in_a_row: int = 2) -> Schedule:
    """A share of all requests, drawn by seed, meets the transient faults in turn; equal requests meet at most
    `in_a_row` of them without an answer in between.
    """
    chance = random.Random(seed)
    faults = itertools.cycle(chance.sample(TRANSIENT, len(TRANSIENT)))
    row: Counter[str] = Counter()

    def fault(number: int, line: str) -> str | None:
        if chance.random() >= share or row[line] >= in_a_row:
            row[line] = 0
            return None
        row[line] += 1
        return next(faults)

    return fault


def first(faults: Sequence[str], matches: Callable[[str], bool] = lambda line: True) -> Schedule:
    """The first requests whose line matches meet these faults, in this order."""
    left = list(faults)
    return lambda number, line: left.pop(0) if left and matches(line) else None


def spread(faults: int, kinds: Sequence[str], matches: Callable[[str], bool]) -> Schedule:
    """So many faults, all kinds in turn: the first two tries at every request whose line matches meet one
    each, of different kinds, until there have been enough.
    """
    left = itertools.islice(itertools.cycle(kinds), faults)
    met: Counter[str] = Counter()

    def fault(number: int, line: str) -> str | None:
        met[line] += 1
        return next(left, None) if matches(line) and met[line] <= 2 else None

    return fault


def every_from(number: int, kind: str) -> Schedule:
    """Every request from this number on meets this fault."""
    return lambda count, line: kind if count >= number else None


@dataclass(frozen=True)
class _Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def head(self) -> bytes:
        lines = [
            f"HTTP/1.1 {self.status} {self.reason}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


class FaultProxy:
    """Listens on a port of its own while the block lasts; `met` lists every request's line and its fault.

    latency: seconds before each answer. bytes_per_second: of all answers' bodies together (None: no limit).
    """

    def __init__(
        self,
        target: str,
        schedule: Schedule = lambda number, line: None,
        *,
        latency: float = 0.0,
        bytes_per_second: float | None = None,
    ) -> None:
        self.schedule = schedule
        self._latency, self._bytes_per_second = latency, bytes_per_second
        self._link_is_free_at = 0.0  # by time.monotonic
        self.met: list[tuple[str, str | None]] = []
        self._target = target
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._closing = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            connection.close()

    def faults(self) -> Counter[str]:
        """How often each fault was met."""
        return Counter(fault for _, fault in self.met if fault)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        upstream = http.client.HTTPConnection(self._target, timeout=60)
        try:
            with connection, connection.makefile("rb") as stream:
                while self._exchange(connection, stream, upstream):
                    pass
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
        ):  # a client that was killed, or the end of the test
            pass
        finally:
            upstream.close()
            self._open.discard(connection)

    def _exchange(self, connection, stream, upstream) -> bool:
        """Pass one request and its answer on, or break them; whether the connection stays open."""
        request = stream.readline().decode("latin-1").split()
        if not request:
            return False
        headers = http.client.parse_headers(stream)
        if headers.get("Expect"):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert "Transfer-Encoding" not in headers
        body = stream.read(int(headers.get("Content-Length", 0)))
        method, target = request[:2]
        line = " ".join(filter(None, [method, target, headers.get("Range")]))
        with self._lock:
            fault = self.schedule(len(self.met), line)
            self.met.append((line, fault))
        time.sleep(self._latency)
        if fault == HANG:
            self._closing.wait()
            return False
        if fault == RESET_BEFORE:
            return _reset(connection)
        if fault in _REFUSALS:
            answer = _refusal(*_REFUSALS[fault], with_body=method != "HEAD")
        else:
            answer = _forward(upstream, method, target, headers, body)
        if fault == RESET_AFTER:
            return _reset(connection)
        if fault == STALL:
            connection.sendall(answer.head() + answer.body[: len(answer.body) // 2])
            self._closing.wait()
            return False
        self._wait_for_link(len(answer.body))
        return _send(connection, answer, fault)

    def _wait_for_link(self, size: int) -> None:
        """Wait for as long as so many bytes take, after all that are on their way already."""
        if self._bytes_per_second:
            with self._lock:
                begin = max(time.monotonic(), self._link_is_free_at)
                self._link_is_free_at = begin + size / self._bytes_per_second
                wait = self._link_is_free_at - time.monotonic()
            time.sleep(max(0.0, wait))


@contextmanager
def faulty_s3(schedule: Schedule = lambda number, line: None, **link: float) -> Iterator[FaultProxy]:
    """Inside, this process and those it starts reach the server of the fixture `s3` through a proxy; link:
    its `latency` and `bytes_per_second`.
    """
    target = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    with FaultProxy(target, schedule, **link) as proxy, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()  # they keep the address they were made with
        try:
            yield proxy
        finally:
            s3fs.S3FileSystem.clear_instance_cache()


def _forward(upstream, method, target, headers, body) -> _Answer:
    passed = {name: value for name, value in headers.items() if name.lower() != "expect"}
    upstream.request(method, target, body or None, passed)
    answer = upstream.getresponse()
    content = answer.read()
    kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("connection", "transfer-encoding")]
    if method != "HEAD":  # where the length is that of the body that a GET would bring
        kept = [(n, v) for n, v in kept if n.lower() != "content-length"] + [
            ("Content-Length", str(len(content)))
        ]
    return _Answer(answer.status, answer.reason, kept, content)


def _refusal(status: int, code: str, message: str, *, with_body: bool) -> _Answer:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    body = text.encode() if with_body else b""
    return _Answer(
        status, code, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))], body
    )


def _send(connection: socket.socket, answer: _Answer, fault: str | None) -> bool:
    half = answer.body[: len(answer.body) // 2]
    if fault == TRUNCATED:
        connection.sendall((answer.head() if answer.body else answer.head()[:20]) + half)
        return False
    if fault == SHORT:
        headers = [(n, v) for n, v in answer.headers if n.lower() != "content-length"]
        answer = _Answer(answer.status, answer.reason, [*headers, ("Content-Length", str(len(half)))], half)
    if fault == CORRUPT:
        changed = bytearray(answer.body)
        changed[len(changed) // 2] ^= 255
        answer = _Answer(answer.status, answer.reason, answer.headers, bytes(changed))
    data = answer.head() + answer.body
    if fault == SLOW:
        step = -(-len(data) // 8)
        for start in range(0, len(data), step):
            time.sleep(0.03)
            connection.sendall(data[start : start + step])
    else:
        connection.sendall(data)
    return True


def _reset(connection: socket.socket) -> bool:
    # closed without lingering, a connection ends by RST instead of FIN
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False
