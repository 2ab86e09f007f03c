"""An exported folder reaches a hub, here a server on this machine, as one commit."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import pmc_clip
from pmc_clip.export import push_to_hub, save_folder, save_open_clip


class WritableHub:
    """Takes repositories and commits, and keeps their files: `files["owner/name"]["config.json"]`."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: WritableHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_right":
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            told = json.loads(body)
            repository = f"{told['organization']}/{told['name']}"
            self.hub.private[repository] = told.get("visibility") == "private" or bool(told.get("private"))
            taken = repository in self.hub.files
            self.hub.files.setdefault(repository, {})
            self._answer(409 if taken else 200, {"url": f"{self.hub.endpoint}/{repository}"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            wanted = [file["path"] for file in json.loads(body)["files"]]
            plan = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]
            self._answer(200, {"files": plan})
        else:
            repository = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.files[repository][line["value"]["path"]] = content
            self.hub.commits += 1
            self._answer(
                200, {"success": True, "commitUrl": f"{self.hub.endpoint}/c/1", "commitOid": "0" * 40}
            )

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def hub(monkeypatch) -> Iterator[WritableHub]:
    server = WritableHub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)  # what HF_ENDPOINT sets
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield server
    server.stop()


def test_a_folder_reaches_the_hub_as_one_commit(hub, tmp_path):
    save_folder(pmc_clip.create_model("tiny"), tmp_path / "out")
    address = push_to_hub(tmp_path / "out", "clinic/liver-ct", private=True)
    assert address == f"{hub.endpoint}/clinic/liver-ct"
    here = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files["clinic/liver-ct"] == here
    assert hub.private["clinic/liver-ct"]
    assert hub.commits == 1
    push_to_hub(tmp_path / "out", "clinic/liver-ct")  # a repository that exists is added to
    assert hub.commits == 2


def test_on_the_hub_open_clip_finds_its_parts_in_the_repository(hub, tmp_path):
    save_open_clip(pmc_clip.create_model("tiny"), tmp_path / "out")
    push_to_hub(tmp_path / "out", "clinic/liver-ct")
    text = json.loads(hub.files["clinic/liver-ct"]["open_clip_config.json"])["model_cfg"]["text_cfg"]
    assert (text["hf_model_name"], text["hf_tokenizer_name"]) == ("clinic/liver-ct", "clinic/liver-ct")
    assert all(str(tmp_path).encode() not in content for content in hub.files["clinic/liver-ct"].values())


def test_a_refusal_says_what_to_do(hub, tmp_path, monkeypatch):
    save_folder(pmc_clip.create_model("tiny"), tmp_path / "out")
    with pytest.raises(
        pmc_clip.ModelError, match=r"no/such/name: .* did not take the export .*check the name"
    ):
        push_to_hub(tmp_path / "out", "no/such/name")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(pmc_clip.ModelError, match=r"clinic/ct: http://.* did not take .*401.*hf auth login"):
        push_to_hub(tmp_path / "out", "clinic/ct")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(pmc_clip.ModelError, match=r"clinic/ct: http://127\.0\.0\.1:9 did not take .*network"):
        push_to_hub(tmp_path / "out", "clinic/ct")
    assert not hub.files


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_only_an_export_is_uploaded(hub, tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(pmc_clip.ModelError, match=f"{name}: holds no exported model"):
        push_to_hub(tmp_path / name, "clinic/liver-ct")
