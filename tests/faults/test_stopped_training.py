"""A training that is stopped by SIGTERM, by real commands: how it ends, and what it is after it resumed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.images import save_calm, save_photos


def start(folder: Path, output: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "florence2", "train", "--dataset", "photos", "--model_id", "model"]
    command += ["--output_dir", output, "--epochs", "20", "--batch_size", "4", "--device", "cpu", "--dropout", "0.2"]
    command += ["--trainer_args", "logging_steps=1", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
def test_stopped_training_resumes_to_the_same_adapter(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model", dropout=0.1)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    with start(tmp_path, "stopped") as stopped:
        while stopped.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 3):
            time.sleep(0.01)
        stopped.send_signal(signal.SIGTERM)
        _, log = stopped.communicate(timeout=300)
    assert stopped.returncode == 130, log[-2000:]
    assert "\nstopped at step " in log
    assert "\nhint: resume with: florence2 train " in log
    assert "Traceback" not in log
    outputs = []
    for name, words in (("stopped", ("--resume", "auto")), ("uninterrupted", ())):
        with start(tmp_path, name, *words) as process:
            _, log = process.communicate(timeout=300)
        assert process.returncode == 0, log[-2000:]
        outputs.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]
