"""A server with the layout of the Hugging Face hub, for one data set repository: metadata, redirects to the
storage behind it, ranged reads; and the troubles that a download meets.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 1 << 20


@dataclass
class HubServer:
    """A repository's files, and what goes wrong with them; `sent`: (name, first byte, bytes) of each read."""

    repository: str
    files: dict[str, bytes]
    refusal: tuple[int, str] | None = None  # status and the hub's error code, for every request
    unavailable: int = 0  # answers 503 to this many reads
    stalls_after: int | None = None  # bytes of a read after which nothing more comes
    cuts_after: int | None = None  # bytes of a read after which the connection closes, once
    damaged: bool = False
    claimed_size: int | None = None  # size of every file by the metadata
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "HubServer":
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def bytes_sent(self, name: str) -> int:
        return sum(size for read, _, size in self.sent if read == name)

    def metadata(self) -> dict[str, object]:
        siblings = [
            {
                "rfilename": name,
                "size": self.claimed_size or len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
                "lfs": {
                    "size": self.claimed_size or len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "pointerSize": 134,
                },
            }
            for name, content in self.files.items()
        ]
        return {"id": self.repository, "sha": COMMIT, "siblings": siblings, "tags": []}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        repository = self.hub.repository
        if self.hub.refusal:
            status, code = self.hub.refusal
            self._answer(status, b"", **{"X-Error-Code": code})
        elif path in (f"/api/datasets/{repository}", f"/api/datasets/{repository}/revision/main"):
            self._answer(
                200, json.dumps(self.hub.metadata()).encode(), **{"Content-Type": "application/json"}
            )
        elif path.startswith(f"/datasets/{repository}/resolve/{COMMIT}/"):
            self._redirect(path.rsplit("/", 1)[1])
        elif path.startswith("/storage/"):
            self._read(path.rsplit("/", 1)[1])
        else:
            self._answer(404, b"", **{"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _redirect(self, name: str) -> None:
        content = self.hub.files[name]
        self._answer(
            302,
            b"",
            Location=f"/storage/{name}?signature=brief",
            **{
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            },
        )

    def _read(self, name: str) -> None:
        if self.hub.unavailable:
            self.hub.unavailable -= 1
            self._answer(503, b"")
            return
        content = self.hub.files[name]
        if self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self._send(name, content, first)

    def _send(self, name: str, content: bytes, first: int) -> None:
        here = first
        try:
            while here < len(content):
                if self.hub.stalls_after is not None and here - first >= self.hub.stalls_after:
                    self.hub.released.wait()
                    self.close_connection = True
                    break
                if self.hub.cuts_after is not None and here - first >= self.hub.cuts_after:
                    self.hub.cuts_after = None
                    self.close_connection = True
                    break
                here += self.wfile.write(content[here : here + PIECE])
        except OSError:
            self.close_connection = True
        self.hub.sent.append((name, first, here - first))

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output clean."""
