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
from tests.model.original import TINY, copy_tiny, split_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {  # name on the hub: status, what the hub calls it
    "some/gated": (403, "GatedRepo"),
    "some/nowhere": (401, "RepoNotFound"),
    "some/removed": (404, "RepoNotFound"),
    "some/other": (404, "RevisionNotFound"),
    "some/private": (403, ""),
    "some/broken": (500, ""),
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: it has one model, and refuses others in the ways the hub does."""

    asked: list[str] = []  # noqa: RUF012
    folder: Path

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
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
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(hub_settings, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def put_in_cache(cache: Path, name: str) -> Path:
    """Lay a checkpoint out as the hub's client caches it."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "refs" / "v2").write_text(COMMIT)
    return copy_tiny(place / "snapshots" / COMMIT)


def line(name, **options):
    with pytest.raises(UserError) as caught:
        load(name, device="cpu", **options)
    assert "\n" not in caught.value.what
    assert "\n" not in caught.value.hint
    assert caught.value.hint
    assert not caught.value.what.endswith(".")
    return caught.value.what


def test_a_hub_model_is_fetched_without_its_code(hub, tmp_path):
    """In a process of its own, since the hub's client reads its environment when it is imported."""
    code = (
        "from florence2.model.load import load; from florence2.errors import UserError\n"
        "print(load('tiny/pickled', device='cpu')[0].config.name_or_path)\n"
        "print(load('tiny/pickled', device='cpu', offline=True)[1].image_token_id)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub_settings.ENDPOINT}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["tiny/pickled", "1500"]
    fetched = {path.name for path in (tmp_path / "home" / "hub").rglob("snapshots/*/*")}
    assert fetched == {path.name for path in Hub.folder.iterdir()} - {"modeling_florence2.py", "nested"}
    assert not [path for path in Hub.asked if path.endswith((".py", "big.json"))]


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
def test_the_hub_refuses(hub, name, message):
    assert message in line(name, revision="refs/pr/6")


def test_no_hub_in_reach(cache):
    message = "there is no folder `some/model`, and the hub's cache has no whole copy of it"
    assert message in line("some/model")
    assert message in line("some/model", offline=True)


def test_a_cached_model_needs_no_hub(cache):
    put_in_cache(cache, "some/model")
    for options in ({}, {"offline": True}, {"offline": True, "revision": "v2"}, {"offline": True, "revision": COMMIT}):
        assert load("some/model", device="cpu", **options)[1].image_token_id == 1500
    assert "no whole copy of it at revision `v3`" in line("some/model", offline=True, revision="v3")


def test_a_partly_cached_model_says_what_is_missing(cache):
    (put_in_cache(cache, "some/model") / "model.safetensors").unlink()
    assert "has no weights" in line("some/model", offline=True)


def test_offline_by_the_environment(cache, hub, monkeypatch):
    put_in_cache(cache, "some/gated")
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", True)
    assert load("some/gated", device="cpu")[1].image_token_id == 1500
    assert "no whole copy of it" in line("tiny/pickled")
    assert not Hub.asked


def test_a_full_disk_and_a_broken_connection():
    with pytest.raises(UserError, match="the disk is full: `some/model` cannot be stored") as caught:  # noqa: SIM117
        with checkpoint._hub_errors("some/model", None):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "HF_HOME" in caught.value.hint
    with pytest.raises(UserError, match=r"connection to the hub broke .*: gone"):  # noqa: SIM117
        with checkpoint._hub_errors("some/model", None):
            raise checkpoint.HTTPError("gone")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "what is this", ".hidden", "C:\\models", ""])
def test_a_name_that_can_be_no_hub_id(name):
    assert f"there is no folder `{name}`" in line(name)


def test_a_folder_that_is_no_model(tmp_path):
    assert "has no `config.json` and no `adapter_config.json`" in line(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "is a file" in line(tmp_path / "notes.txt")
    (tmp_path / "config.json").write_text('{"model_type": "florence2"')
    assert "config.json` cannot be read" in line(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    assert "config.json` is not a JSON object" in line(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.system, ("echo remote code ran > /dev/stderr",)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 463221266\n")


@pytest.mark.parametrize(
    ("weights", "spoil", "message"),
    [
        ("model.safetensors", cut, "model.safetensors` is damaged"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "model.safetensors` is damaged"),
        ("model.safetensors", lambda path: path.write_bytes(b"x" * 999), "model.safetensors` is damaged"),
        ("model.safetensors", pointer, "is a git-lfs pointer"),
        ("pytorch_model.bin", cut, "pytorch_model.bin` is damaged"),
        ("pytorch_model.bin", lambda path: path.write_bytes(b""), "pytorch_model.bin` is damaged"),
        ("pytorch_model.bin", lambda path: path.write_bytes(b"x" * 999), "pytorch_model.bin` is damaged"),
        ("pytorch_model.bin", lambda path: torch.save({"w": Bomb()}, path), "holds more than tensors"),
        ("pytorch_model.bin", lambda path: torch.save({"epoch": 3}, path), "is not a table of tensors"),
    ],
)
def test_damaged_weights(weights, spoil, message, tmp_path, capfd):
    spoil(copy_tiny(tmp_path, weights) / weights)
    assert message in line(tmp_path)
    assert "remote code ran" not in capfd.readouterr().err


def test_damaged_parts(tmp_path):
    folder = split_weights(copy_tiny(tmp_path), "safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors` is missing" in line(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "has no `weight_map`" in line(folder)


def test_a_damaged_tokenizer(tmp_path):
    (copy_tiny(tmp_path) / "tokenizer.json").write_text("{")
    assert "tokenizer.json` is damaged" in line(tmp_path)


def test_old_exports_without_tokenizer_json_have_vocab_and_merges(tmp_path):
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((TINY / "exported" / name).read_bytes())
    tokenizer = checkpoint.read_tokenizer(tmp_path)
    known = json.loads((TINY / "expected_processing.json").read_text())
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in known["special_token_ids"]} == (
        known["special_token_ids"]
    )
    for text, ids in known["labels"].items():
        assert tokenizer(text)["input_ids"] == ids


def test_demo_is_the_model_in_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "_DEMO", copy_tiny(tmp_path / "model"))
    assert load("demo", device="cpu")[0].config.name_or_path == "demo"
