"""Trackers that fail: a training goes on without them, and says so."""

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from florence2.training.trackers import _offline_reason, open_trackers
from tests.training.images import run, save_calm, save_photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers")
    save_photos(folder / "photos")
    save_calm(folder / "model")
    return folder


def test_tracker_that_fails_in_the_middle_ends_no_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    add_scalar, calls = writer.add_scalar, []

    def add_two(self: Any, *args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        add_scalar(self, *args, **options)

    monkeypatch.setattr(writer, "add_scalar", add_two)
    output = run(folder, "middle", epochs=1, batch_size=4, log_with="tensorboard", trainer_args=["logging_steps=1"])
    assert (output / "adapter_model.safetensors").exists()
    assert len(calls) == 3
    [warning] = [line for line in caplog.messages if "tracker" in line]
    assert warning.startswith("the tracker `tensorboard` fails, and gets no more values; training goes on: OSError")


def test_folder_that_takes_no_events_ends_no_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    (folder / "file").touch()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "file" / "runs"))
    output = run(folder, "folder", epochs=1, batch_size=4, log_with="tensorboard")
    assert (output / "adapter_model.safetensors").exists()
    assert any(line.startswith("the tracker `tensorboard` fails") for line in caplog.messages)


def test_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert _offline_reason(SimpleNamespace(mode="online", api_key="secret", base_url=address)) == ""
    reason = _offline_reason(SimpleNamespace(mode="online", api_key="secret", base_url=address))
    assert reason == f"{address} of Weights & Biases does not answer"
    assert _offline_reason(SimpleNamespace(mode="offline", api_key="secret", base_url=address)) == ""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="the service of wandb needs time to end")
def test_server_that_refuses_leaves_the_run_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that takes connections and sends no answer: `init` waits for 30 s."""
    pytest.importorskip("wandb")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        with open_trackers(["wandb"], tmp_path, {}, offline=False):
            assert os.environ.get("WANDB_MODE") is None
    assert any("the run stays on this machine" in line for line in caplog.messages)
    assert list((tmp_path / "wandb").glob("offline-run-*"))
