"""A server with the layout of the Hugging Face hub, for one repository: metadata, redirects to the storage
behind it, ranged reads; and the troubles that a download meets.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 1 << 20


@dataclass
class HubServer:
    """A repository's files, and what goes wrong with them; `sent`: (name, first byte, bytes) of each read."""

    repository: str
    files: dict[str, bytes]
    kind: str = "datasets"  # or "models"
    refusal: tuple[int, str] | None = None  # status and the hub's error code…
    refused: str = "/"  # … for every request whose path begins so
    unavailable: int = 0  # answers 503 to this many reads
    stalls_after: int | None = None  # bytes of a read after which nothing more comes
    cuts_after: int | None = None  # bytes of a read after which the connection closes, once
    damaged: bool = False
    claimed_size: int | None = None  # size of every file by the metadata
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # path and query of every request
    released: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "HubServer":
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def bytes_sent(self, name: str) -> int:
        return sum(size for read, _, size in self.sent if read == name)

    def listing(self, folder: str) -> list[dict[str, object]]:
        """The files directly in a folder of the repository, and the folders in it."""
        below = {name: name[len(folder) :].strip("/") for name in self.files if name.startswith(folder)}
        entries: list[dict[str, object]] = [
            {
                "type": "file",
                "path": name,
                "oid": hashlib.sha1(self.files[name]).hexdigest(),
                "size": len(self.files[name]),
            }
            for name, rest in below.items()
            if "/" not in rest
        ]
        folders = {name[: -len(rest)] + rest.split("/")[0] for name, rest in below.items() if "/" in rest}
        return entries + [{"type": "directory", "path": path, "oid": "0"} for path in sorted(folders)]

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
        self.hub.asked.append(self.path)
        path = unquote(urlsplit(self.path).path)
        repository, kind = self.hub.repository, self.hub.kind
        prefix = "/datasets" if kind == "datasets" else ""
        if self.hub.refusal and path.startswith(self.hub.refused):
            status, code = self.hub.refusal
            self._answer(status, b"", **{"X-Error-Code": code})
        elif path in (f"/api/{kind}/{repository}", f"/api/{kind}/{repository}/revision/main"):
            self._answer(
                200, json.dumps(self.hub.metadata()).encode(), **{"Content-Type": "application/json"}
            )
        elif path.startswith(f"/api/{kind}/{repository}/tree/main"):
            self._list(path.removeprefix(f"/api/{kind}/{repository}/tree/main").strip("/"))
        elif resolved := re.fullmatch(f"{prefix}/{repository}/resolve/(?:{COMMIT}|main)/(.+)", path):
            self._redirect(resolved[1])
        elif path.startswith("/storage/"):
            self._read(path.removeprefix("/storage/"))
        elif path.startswith(f"/api/{kind}/{repository}/revision/"):
            self._answer(404, b"", **{"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/api/{kind}/{repository}/"):
            self._answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
        else:
            self._answer(404, b"", **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _list(self, folder: str) -> None:
        entries = self.hub.listing(folder)
        if not entries:
            self._answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
            return
        self._answer(200, json.dumps(entries).encode(), **{"Content-Type": "application/json"})

    def _redirect(self, name: str) -> None:
        """The storage is another host than the hub, which is asked for what a file is."""
        content = self.hub.files.get(name)
        if content is None:
            self._answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
            return
        port = urlsplit(self.hub.endpoint).port
        self._answer(
            302,
            b"",
            Location=f"http://localhost:{port}/storage/{quote(name)}?signature=brief",
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
        first, total = 0, len(content)
        if asked:
            begin, _, last = asked.removeprefix("bytes=").partition("-")
            first, content = int(begin), content[: int(last) + 1] if last else content
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{total}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if self.command == "GET":
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
