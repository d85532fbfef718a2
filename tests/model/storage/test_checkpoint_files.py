import errno
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as hub_settings
import pytest
import torch
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from florence2.errors import UserError
from florence2.model.load import load
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import hub_download
from tests.model.original import TINY, copy_tiny, split_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {  # name on the hub: HTTP status, error code
    "some/gated": (403, "GatedRepo"),
    "some/nowhere": (401, "RepoNotFound"),
    "some/removed": (404, "RepoNotFound"),
    "some/other": (404, "RevisionNotFound"),
    "some/private": (403, ""),
    "some/broken": (500, ""),
}


class Hub(BaseHTTPRequestHandler):
    """A stub of the hub that serves one model and refuses others as the hub does."""

    requested_paths: list[str] = []  # noqa: RUF012
    folder: Path

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.requested_paths.append(path)
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
        for name, (status, code) in REFUSALS.items():
            if name in path:
                return self.answer(b"{}", status, {"X-Error-Code": code} if code else {})
        if path.startswith("/api/models/tiny/pickled/revision/"):
            siblings = [{"rfilename": str(file.relative_to(self.folder))} for file in files]
            content = {"id": "tiny/pickled", "modelId": "tiny/pickled", "sha": COMMIT, "siblings": siblings}
            return self.answer(json.dumps(content).encode())
        if path.startswith("/api/models/tiny/pickled/tree/"):
            rows = [
                {
                    "type": "file",
                    "path": str(file.relative_to(self.folder)),
                    "size": file.stat().st_size,
                    "oid": f"{n:040}",
                }
                for n, file in enumerate(files)
            ]
            return self.answer(json.dumps(rows).encode())
        file = self.folder / path.rpartition(f"{COMMIT}/")[2]
        n = files.index(file)
        return self.answer(file.read_bytes(), 200, {"ETag": f'"{n:040}"', "X-Repo-Commit": COMMIT})

    def answer(self, content, status=200, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_settings, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_settings, "ENDPOINT", "http://127.0.0.1:9")
    disable_progress_bars()
    yield tmp_path / "cache"
    enable_progress_bars()


@pytest.fixture
def hub(cache, tmp_path, monkeypatch):
    Hub.folder = copy_tiny(tmp_path / "served", "pytorch_model.bin")
    (Hub.folder / "modeling_florence2.py").write_text("raise SystemExit('remote code ran')")
    (Hub.folder / "nested").mkdir()
    (Hub.folder / "nested" / "big.json").write_text("{}")
    Hub.requested_paths.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(hub_settings, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def write_to_cache(cache: Path, name: str) -> Path:
    """Write a checkpoint in the layout of the hub client's cache."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "refs" / "v2").write_text(COMMIT)
    return copy_tiny(root / "snapshots" / COMMIT)


def load_error(name, **options) -> str:
    """Return what is wrong, after a check of the error's form."""
    with pytest.raises(UserError) as caught:
        load(name, device="cpu", **options)
    assert "\n" not in caught.value.what
    assert "\n" not in caught.value.hint
    assert caught.value.hint
    assert not caught.value.what.endswith(".")
    return caught.value.what


def test_download_of_hub_model_excludes_code(hub, tmp_path):
    """In a subprocess, because the hub's client reads the environment when it is imported."""
    code = (
        "from florence2.model.load import load; from florence2.errors import UserError\n"
        "print(load('tiny/pickled', device='cpu')[0].config.name_or_path)\n"
        "print(load('tiny/pickled', device='cpu', offline=True)[1].image_token_id)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub_settings.ENDPOINT}
    completed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert completed.stdout.splitlines() == ["tiny/pickled", "1500"]
    downloaded = {path.name for path in (tmp_path / "home" / "hub").rglob("snapshots/*/*")}
    assert downloaded == {path.name for path in Hub.folder.iterdir()} - {"modeling_florence2.py", "nested"}
    assert not [path for path in Hub.requested_paths if path.endswith((".py", "big.json"))]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some/gated", "`some/gated` is gated"),
        ("some/nowhere", "no folder `some/nowhere` and no model of that name on the hub"),
        ("some/removed", "no folder `some/removed` and no model of that name on the hub"),
        ("some/other", "`some/other` has no revision `refs/pr/6`"),
        ("some/private", "the hub refused `some/private` with status 403"),
        ("some/broken", "the hub refused `some/broken` with status 500"),
    ],
)
def test_refusal_of_hub_is_explained(hub, name, message):
    assert message in load_error(name, revision="refs/pr/6")


def test_unreachable_hub_is_explained(cache):
    message = "there is no folder `some/model`, and the hub's cache has no complete copy of it"
    assert message in load_error("some/model")
    assert message in load_error("some/model", offline=True)


def test_cached_model_loads_without_hub(cache):
    write_to_cache(cache, "some/model")
    for options in ({}, {"offline": True}, {"offline": True, "revision": "v2"}, {"offline": True, "revision": COMMIT}):
        assert load("some/model", device="cpu", **options)[1].image_token_id == 1500
    assert "no complete copy of it at revision `v3`" in load_error("some/model", offline=True, revision="v3")


def test_incomplete_cache_names_missing_weights(cache):
    (write_to_cache(cache, "some/model") / "model.safetensors").unlink()
    assert "has no weights" in load_error("some/model", offline=True)


def test_offline_environment_sends_no_request(cache, hub, monkeypatch):
    write_to_cache(cache, "some/gated")
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", True)
    assert load("some/gated", device="cpu")[1].image_token_id == 1500
    assert "no complete copy of it" in load_error("tiny/pickled")
    assert not Hub.requested_paths


def test_full_disk_and_broken_connection_are_explained():
    with pytest.raises(UserError, match="the disk is full: `some/model` cannot be stored") as caught:  # noqa: SIM117
        with hub_download._hub_errors("some/model", None):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "HF_HOME" in caught.value.hint
    with pytest.raises(UserError, match=r"connection to the hub broke .*: gone"):  # noqa: SIM117
        with hub_download._hub_errors("some/model", None):
            raise hub_download.HTTPError("gone")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "what is this", ".hidden", "C:\\models", ""])
def test_invalid_hub_id_is_refused(name):
    assert f"there is no folder `{name}`" in load_error(name)


def test_folder_without_model_is_refused(tmp_path):
    assert "has no `config.json` and no `adapter_config.json`" in load_error(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "is a file" in load_error(tmp_path / "notes.txt")
    (tmp_path / "config.json").write_text('{"model_type": "florence2"')
    assert "config.json` cannot be read" in load_error(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    assert "config.json` is not a JSON object" in load_error(tmp_path)


class CodeOnUnpickling:
    def __reduce__(self):
        return os.system, ("echo remote code ran > /dev/stderr",)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 463221266\n")


@pytest.mark.parametrize(
    ("weights", "damage", "message"),
    [
        ("model.safetensors", truncate, "model.safetensors` is damaged"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "model.safetensors` is damaged"),
        ("model.safetensors", lambda path: path.write_bytes(b"x" * 999), "model.safetensors` is damaged"),
        ("model.safetensors", write_lfs_pointer, "is a git-lfs pointer"),
        ("pytorch_model.bin", truncate, "pytorch_model.bin` is damaged"),
        ("pytorch_model.bin", lambda path: path.write_bytes(b""), "pytorch_model.bin` is damaged"),
        ("pytorch_model.bin", lambda path: path.write_bytes(b"x" * 999), "pytorch_model.bin` is damaged"),
        ("pytorch_model.bin", lambda path: torch.save({"w": CodeOnUnpickling()}, path), "holds more than tensors"),
        ("pytorch_model.bin", lambda path: torch.save({"epoch": 3}, path), "is not a dictionary of tensors"),
    ],
)
def test_damaged_weights_are_refused(weights, damage, message, tmp_path, capfd):
    damage(copy_tiny(tmp_path, weights) / weights)
    assert message in load_error(tmp_path)
    assert "remote code ran" not in capfd.readouterr().err


def test_damaged_shards_are_refused(tmp_path):
    folder = split_weights(copy_tiny(tmp_path), "safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors`, which `model.safetensors.index.json` lists, is missing" in load_error(
        folder
    )
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "has no `weight_map`" in load_error(folder)


def test_damaged_tokenizer_is_refused(tmp_path):
    (copy_tiny(tmp_path) / "tokenizer.json").write_text("{")
    assert "tokenizer.json` is damaged" in load_error(tmp_path)


def test_tokenizer_of_old_export_is_built_from_vocab_and_merges(tmp_path):
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((TINY / "exported" / name).read_bytes())
    tokenizer = checkpoint.read_tokenizer(tmp_path)
    known = json.loads((TINY / "expected_processing.json").read_text())
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in known["special_token_ids"]} == (
        known["special_token_ids"]
    )
    for text, ids in known["labels"].items():
        assert tokenizer(text)["input_ids"] == ids


def test_demo_is_the_bundled_model(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "_DEMO", copy_tiny(tmp_path / "model"))
    assert load("demo", device="cpu")[0].config.name_or_path == "demo"
