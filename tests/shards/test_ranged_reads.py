"""Reads of parts of files: from web servers and S3, and files that change, refuse or stall meanwhile."""

import functools
import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shards import DataError, Folder, UsageError
from tests import fault_proxy
from tests.fault_proxy import faulty_s3, first

CONTENT = bytes(range(256)) * 100


class WebServer(BaseHTTPRequestHandler):
    """Serves one file, `/set/a.tar`; in parts, where it `serves_parts`; after `stalls` answers that stop."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, serves_parts: bool, stalls: list) -> None:
        self.serves_parts, self.stalls = serves_parts, stalls
        super().__init__(*arguments)

    def do_GET(self) -> None:
        begin, end = 0, len(CONTENT)
        asked = self.headers.get("Range")
        if self.path != "/set/a.tar":
            return self.answer(404, b"")
        if asked and self.serves_parts:
            begin, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
            if begin >= len(CONTENT):
                return self.answer(416, b"")
            end = min(last + 1, end)
            return self.answer(206, CONTENT[begin:end], f"bytes {begin}-{end - 1}/{len(CONTENT)}")
        return self.answer(200, CONTENT)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, part: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        if self.command == "GET":
            stalls = bool(self.stalls)
            self.wfile.write(body[: len(body) // 2] if stalls else body)
            if stalls:
                self.stalls.pop().wait()
                self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output clean."""


@contextmanager
def web_server(*, serves_parts: bool = True, stalls: list | None = None):
    handler = functools.partial(WebServer, serves_parts=serves_parts, stalls=stalls or [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Folder(f"http://127.0.0.1:{server.server_port}/set")
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def remote(s3, request) -> Folder:
    return Folder(f"{s3}/{request.node.name.replace('[', '-').rstrip(']')}")


def test_parts_of_files_of_a_web_server():
    with web_server() as folder:
        assert folder.read_range("a.tar", 1_000, 5_000) == CONTENT[1_000:6_000]
        assert folder.read_range("a.tar", 25_000, 5_000) == CONTENT[25_000:]
        assert folder.read_range("a.tar", 30_000, 5_000) == b""
        assert folder.read("a.tar") == CONTENT
        with pytest.raises(FileNotFoundError, match=r"/set/b\.tar: no such file"):
            folder.read_range("b.tar", 0, 10)


def test_a_web_server_without_parts_is_said_rather_than_believed():
    with web_server(serves_parts=False) as folder:
        assert folder.read_range("a.tar", 0, 5_000) == CONTENT[:5_000]
        for start, length in ((1_000, 5_000), (1_000, 100_000)):
            with pytest.raises(DataError, match=r"/a\.tar: .*does not serve parts of files; copy the files"):
                folder.read_range("a.tar", start, length)


@pytest.mark.slow
def test_a_web_server_that_stalls_is_asked_again():
    end = threading.Event()
    with web_server(stalls=[end]) as folder:
        begin = time.monotonic()
        assert folder.read_range("a.tar", 1_000, 5_000) == CONTENT[1_000:6_000]
        end.set()
    assert 10 < time.monotonic() - begin < 25


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(UsageError, match=r"^gs://bucket/set: .* not installed: pip install gcsfs$"):
        Folder("gs://bucket/set")
    with pytest.raises(UsageError, match=r"^nonsense://x: this kind of address is not available: .*nonsense"):
        Folder("nonsense://x")


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_file_of_another_size_is_said_at_once_with_what_to_do(where, tmp_path, request):
    folder = Folder(tmp_path) if where == "local" else request.getfixturevalue("remote")
    folder.write("a.tar", CONTENT)
    assert folder.read_range("a.tar", 10, 90, file_bytes=25_600) == CONTENT[10:100]
    for start in (10, 25_590, 50_000):
        with pytest.raises(DataError) as raised:
            folder.read_range("a.tar", start, 90, file_bytes=25_601)
        assert str(raised.value) == (
            f"{folder.address}/a.tar: changed since the manifest was written (expected 25,601 bytes, found "
            "25,600); fetch this shard again from where it came, or describe the shards as they are now with "
            "'python -m pipeline.index'"
        )


def test_the_size_is_checked_without_another_request(remote):
    remote.write("a.tar", CONTENT)
    with faulty_s3(first([])) as proxy:
        Folder(remote.address).read_range("a.tar", 10, 90, file_bytes=25_600)
        assert len(proxy.met) == 1


def test_an_object_written_again_while_it_is_read_is_said_at_once(remote):
    remote.write("a.tar", CONTENT)
    reader = Folder(remote.address)
    assert reader.read_range("a.tar", 0, 10, file_bytes=25_600) == CONTENT[:10]
    Folder(remote.address).write("a.tar", CONTENT)  # the same again is no change
    assert reader.read_range("a.tar", 0, 10, file_bytes=25_600) == CONTENT[:10]
    Folder(remote.address).write("a.tar", CONTENT[::-1])
    with pytest.raises(DataError, match=r"/a\.tar: written again while it was read; fetch this shard again"):
        reader.read_range("a.tar", 0, 10, file_bytes=25_600)


def test_names_are_taken_as_they_are(remote):
    for name in ("ä b+c%20.tar", "a=1&b#c?d.tar", "~!$'()*,;:@.tar"):
        remote.write(name, name.encode())
        assert remote.read_range(name, 0, 100) == name.encode()


@pytest.mark.parametrize("fault", [fault_proxy.HANG, fault_proxy.TRUNCATED])
def test_threads_read_on_while_one_object_meets_trouble(remote, fault):
    """One client serves all threads: an answer that does not come holds up none but its own."""
    remote.write("a.tar", CONTENT)
    remote.write("b.tar", CONTENT)
    with faulty_s3(first([fault], lambda line: "/a.tar" in line)):
        folder = Folder(remote.address)
        stuck = threading.Thread(target=lambda: folder.read_range("a.tar", 0, 10), daemon=True)
        stuck.start()
        begin = time.monotonic()
        for _ in range(20):
            assert folder.read_range("b.tar", 5, 10) == CONTENT[5:15]
        assert time.monotonic() - begin < 5


def test_what_the_fast_client_is_refused_is_read_by_s3fs(remote, capfd):
    remote.write("a.tar", CONTENT)
    with faulty_s3(first([fault_proxy.DENIED])) as proxy:
        folder = Folder(remote.address)
        for _ in range(3):
            assert folder.read_range("a.tar", 5, 10) == CONTENT[5:15]
        assert len(proxy.met) == 4
    assert capfd.readouterr().err == "s3://bucket: read by s3fs, which is slower: Access Denied\n"


def test_a_process_that_was_forked_reads_too(remote):
    remote.write("a.tar", CONTENT)
    assert remote.read_range("a.tar", 5, 10) == CONTENT[5:15]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, Folder(remote.address).read_range("a.tar", 5, 10))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == CONTENT[5:15]
    os.waitpid(child, 0)
