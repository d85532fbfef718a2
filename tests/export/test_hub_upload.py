"""`--push_to_hub` by the hub's own client, against a server on this machine that answers as the hub does."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from florence2 import api
from florence2.errors import UserError
from florence2.export.hub_upload import upload
from tests.hub_server import read_body
from tests.tiny import save_tiny

TOKEN = "hf_" + "x" * 34


class HubHandler(BaseHTTPRequestHandler):
    """Answers the requests of an upload, and collects the files of the commit."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = read_body(self)
        server.paths.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "unauthorized"}, 401)
        elif server.refuses:
            self._answer({"error": "no rights"}, 403)
        elif self.path == "/api/repos/create":
            name = f"{json.loads(body)['organization']}/{json.loads(body)['name']}"
            self._answer({"url": f"{server.url}/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = [each["path"] for each in json.loads(body)["files"]]
            self._answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            server.files |= {each["path"]: base64.b64decode(each["content"]) for each in values}
            self._answer({"commitUrl": f"{server.url}/me/mine/commit/abc", "commitOid": "abc", "success": True})
        else:
            self._answer({})

    def do_GET(self) -> None:
        self._answer({"id": "me/mine", "sha": "abc", "siblings": []})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.url, server.files, server.paths, server.refuses = f"http://127.0.0.1:{server.server_port}", {}, [], False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def push(folder: Path, hub: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "florence2", "export", "--model_path", str(folder / "model")]
    command += ["--output_path", str(folder / "out"), "--push_to_hub", "me/mine"]
    unset = {"HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_finished_export_is_uploaded_in_one_commit(tmp_path: Path, hub: Any) -> None:
    save_tiny(tmp_path / "model")
    run = push(tmp_path, hub)
    assert run.returncode == 0, run.stderr
    assert f"uploaded to {hub.url}/me/mine" in run.stderr
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "processor_config.json", "README.md"} <= hub.files.keys()


def test_refused_upload_says_where_the_export_is(tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    hub.refuses = True
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match=r"but the upload to `me/mine` failed: .*403") as caught:
        upload(tmp_path / "out", "me/mine")
    assert caught.value.what.startswith(f"the export is in `{tmp_path / 'out'}`")
    assert caught.value.hint == f"run `hf upload me/mine {tmp_path / 'out'}`"


def test_upload_that_cannot_begin_is_refused_before_the_work(tmp_path: Path) -> None:
    words = {"model_path": "demo", "output_path": str(tmp_path / "out"), "push_to_hub": "me/mine"}
    with pytest.raises(UserError, match="`--push_to_hub` and `--offline` exclude each other"):
        api.export(**words, offline=True)  # type: ignore[arg-type]
