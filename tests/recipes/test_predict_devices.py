"""Prediction in several processes: one journal, and each image once, even if a process is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from florence2.api import predict
from florence2.errors import UserError
from tests.recipes.test_predict import read_rows, read_texts, run_predict, save_images
from tests.tiny import save_tiny

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def arguments(tiny: Path, folder: Path, output: Path) -> list[str]:
    flags = ["--model_path", str(tiny), "--input_path", str(folder), "--output_path", str(output)]
    return ["-m", "florence2", "predict", *flags, "--batch_size", "2", "--max_length", "20"]


def wait_until(condition, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def count_lines(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0


@pytest.mark.skipif(sys.platform == "win32", reason="kills by POSIX signals")
def test_killed_worker_and_killed_run_lose_no_prediction(tiny: Path, tmp_path: Path) -> None:
    folder, output = save_images(tmp_path / "photos", *(f"{n:03}.png" for n in range(80))), tmp_path / "o.jsonl"
    command = [sys.executable, *arguments(tiny, folder, output), "--devices", "cpu,cpu"]
    with (tmp_path / "log").open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=ENVIRONMENT)
    wait_until(lambda: count_lines(output) >= 5)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    num_written = count_lines(output)
    wait_until(lambda: count_lines(output) >= num_written + 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    log = (tmp_path / "log").read_text()
    assert "the engine on cpu ended with exit code -9; the others continue" in log
    wait_until(lambda: not workers[1].is_running() or workers[1].status() == psutil.STATUS_ZOMBIE, 30)
    assert count_lines(output) < 80, "the process must be killed while it runs"
    resumed = run_predict(tiny, folder, output, batch_size=2, max_length=20)
    assert len(read_rows(output)) == 80
    assert resumed == run_predict(tiny, folder, tmp_path / "uninterrupted.jsonl", batch_size=2, max_length=20)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tested on POSIX")
def test_processes_of_a_launcher_write_one_journal(tiny: Path, tmp_path: Path) -> None:
    folder, output = save_images(tmp_path / "photos", *(f"{n:03}.png" for n in range(12))), tmp_path / "o.jsonl"
    (folder / "broken.png").write_text("not an image")
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2".split()
    command = [sys.executable, *launch, *arguments(tiny, folder, output), "--device", "cpu"]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert "12 predictions in" in result.stderr, result.stderr[-3000:]
    assert result.stderr.count("12 predictions in") == 1, "only the main process logs"
    names = Counter(json.loads(line)["file_name"] for line in output.read_text().splitlines())
    assert set(names.values()) == {1}
    assert result.returncode != 0, "one image cannot be read"
    (folder / "broken.png").unlink()
    predictions = read_texts(output)
    del predictions["broken.png"]
    assert predictions == run_predict(tiny, folder, tmp_path / "one.jsonl", batch_size=2, max_length=20)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tested on POSIX")
def test_evaluate_under_a_launcher_prints_scores_once(tiny: Path, tmp_path: Path) -> None:
    folder, predictions = save_images(tmp_path / "photos", "a.png", "b.png", "c.png"), tmp_path / "predictions.jsonl"
    for name in "abc":
        (folder / f"{name}.txt").write_text("a square")
    launch = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2 -m florence2 evaluate".split()]
    flags = ["--model_path", str(tiny), "--device", "cpu", "--max_length", "8", "--references", str(folder)]
    written = ["--predictions", str(predictions), "--output_path", "-"]
    result = subprocess.run([*launch, *flags, *written], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout)["tasks"]["caption"]["examples"] == 3, "one JSON, of all three images"
    assert count_lines(predictions) == 3


def test_invalid_devices_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.png")
    flags = {"model_path": str(tiny), "input_path": str(folder), "output_path": str(tmp_path / "o.jsonl")}
    for more, message in (
        ({"devices": "cpu,cpu", "device": "cpu"}, "exclude each other"),
        ({"devices": "cpu,,cpu"}, "between two commas"),
        ({"devices": "cpu,cpu", "engine": "generate"}, "runs on one device"),
    ):
        with pytest.raises(UserError, match=message):
            predict(**flags, **more)
