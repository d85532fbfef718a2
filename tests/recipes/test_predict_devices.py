"""Prediction over several processes: one journal, each picture once, whoever is killed."""

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
from tests.recipes.test_predict import draw, rows, run, texts
from tests.tiny import save_tiny

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def words(tiny: Path, folder: Path, output: Path) -> list[str]:
    given = ["--model_path", str(tiny), "--input_path", str(folder), "--output_path", str(output)]
    return ["-m", "florence2", "predict", *given, "--batch_size", "2", "--max_length", "20"]


def wait_for(true, seconds: float = 180) -> None:
    patience = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.02)


def lines(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_an_engine_may_be_killed_and_then_the_whole_run_and_nothing_is_lost(tiny: Path, tmp_path: Path) -> None:
    folder, output, talk = draw(tmp_path / "photos", *(f"{n:03}.png" for n in range(80))), tmp_path / "o.jsonl", ""
    command = [sys.executable, *words(tiny, folder, output), "--devices", "cpu,cpu"]
    with (tmp_path / "talk").open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=ENVIRONMENT)
    wait_for(lambda: lines(output) >= 5)
    engines = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
    assert len(engines) == 2
    engines[0].kill()
    done = lines(output)
    wait_for(lambda: lines(output) >= done + 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    talk = (tmp_path / "talk").read_text()
    assert "the engine on cpu ended with exit code -9; the others continue" in talk
    wait_for(lambda: not engines[1].is_running() or engines[1].status() == psutil.STATUS_ZOMBIE, 30)
    assert lines(output) < 80, "it was to be killed on its way"
    resumed = run(tiny, folder, output, batch_size=2, max_length=20)
    assert len(rows(output)) == 80
    assert resumed == run(tiny, folder, tmp_path / "whole.jsonl", batch_size=2, max_length=20)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tried on POSIX")
def test_the_processes_of_a_launcher_share_one_run(tiny: Path, tmp_path: Path) -> None:
    folder, output = draw(tmp_path / "photos", *(f"{n:03}.png" for n in range(12))), tmp_path / "o.jsonl"
    (folder / "broken.png").write_text("no picture")
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2".split()
    command = [sys.executable, *launch, *words(tiny, folder, output), "--device", "cpu"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert "12 predictions in" in done.stderr, done.stderr[-3000:]
    assert done.stderr.count("12 predictions in") == 1, "only one of them talks"
    names = Counter(json.loads(line)["file_name"] for line in output.read_text().splitlines())
    assert set(names.values()) == {1}
    assert done.returncode != 0, "for one picture could not be read"
    (folder / "broken.png").unlink()
    said = texts(output)
    del said["broken.png"]
    assert said == run(tiny, folder, tmp_path / "one.jsonl", batch_size=2, max_length=20)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tried on POSIX")
def test_a_launcher_scores_once(tiny: Path, tmp_path: Path) -> None:
    folder, said = draw(tmp_path / "photos", "a.png", "b.png", "c.png"), tmp_path / "said.jsonl"
    for name in "abc":
        (folder / f"{name}.txt").write_text("a square")
    launch = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2 -m florence2 evaluate".split()]
    given = ["--model_path", str(tiny), "--device", "cpu", "--max_length", "8", "--references", str(folder)]
    written = ["--predictions", str(said), "--output_path", "-"]
    done = subprocess.run([*launch, *given, *written], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["tasks"]["caption"]["examples"] == 3, "one JSON, of all three"
    assert lines(said) == 3


def test_devices_that_cannot_be_meant_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "photos", "a.png")
    given = {"model_path": str(tiny), "input_path": str(folder), "output_path": str(tmp_path / "o.jsonl")}
    for more, told in (
        ({"devices": "cpu,cpu", "device": "cpu"}, "beside `--device`"),
        ({"devices": "cpu,,cpu"}, "between two commas"),
        ({"devices": "cpu,cpu", "engine": "generate"}, "answers on one device"),
    ):
        with pytest.raises(UserError, match=told):
            predict(**given, **more)
