"""Images that crash, hang or bloat their decoder, in real runs of the command and of the server."""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from florence2.apps.serve.request_limits import RequestLimits
from florence2.data.sample import ResolvedDataset, Sample
from florence2.data.validate import check_images
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import DatasetError
from florence2.training.dataset.florence2_dataset import raise_lost_worker
from tests.apps.serve.live_server import data_uri, live_server
from tests.engine.images import image
from tests.faults.hostile_images import hostile_bytes, hostile_decoders, hostile_environment
from tests.faults.test_odd_files import PREDICT, read_rows
from tests.tiny import tiny_model

__all__ = ["hostile_decoders"]

# The command with limits that a test can wait for.
COMMAND = """
import sys
from florence2.cli import program
from florence2.engine.engine_config import EngineConfig
init = EngineConfig.__init__
EngineConfig.__init__ = lambda self, *a, **k: init(self, *a, **{"image_timeout": 3.0, "image_memory": 0.5} | k)
program.run_program(sys.argv[1:])
"""
FAULTS = {
    "crash": "crashed (signal 11: ",
    "hang": "could not be decoded in 3 s of processor time",
    "grow": "needs more than 0.5 GiB",
}


def save_photos(folder: Path, number: int, *faults: str) -> Path:
    folder.mkdir()
    for index in range(number):
        image(index).save(folder / f"{index:02}.png")
    for index, fault in enumerate(faults):
        (folder / f"{index * number // 4:02}-{fault}.png").write_bytes(hostile_bytes(fault))
    return folder


def run_hostile(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=hostile_environment(), timeout=300, check=False)


def test_three_hostile_images_among_fifty_are_three_errors(tmp_path: Path) -> None:
    photos, output = save_photos(tmp_path / "photos", 50, *FAULTS), tmp_path / "o.jsonl"
    words = [*PREDICT, "--input_path", photos, "--output_path", output]
    first = run_hostile(*words)
    assert first.returncode == 1, first.stderr
    rows = {row["file_name"]: row for row in read_rows(output)}
    errors = {name: row["error"] for name, row in rows.items() if "error" in row}
    assert (len(rows), len(errors)) == (53, 3)
    for fault, message in FAULTS.items():
        [error] = [each for name, each in errors.items() if fault in name]
        assert message in error
    for fault in FAULTS:
        [bad] = photos.glob(f"*-{fault}.png")
        image(99).save(bad)
    second = run_hostile(*words)
    assert second.returncode == 0, second.stderr
    assert "3 predictions" in second.stderr
    again = {row["file_name"]: row for row in read_rows(output)}
    assert len(again) == 53
    assert all(again[name] == row for name, row in rows.items() if name not in errors)


def test_threads_do_not_survive_a_crash(tmp_path: Path) -> None:
    """So the decoder of these tests does crash."""
    photos = save_photos(tmp_path / "photos", 2, "crash")
    words = [*PREDICT, "--input_path", photos, "--output_path", tmp_path / "o.jsonl", "--image_workers", "threads"]
    assert run_hostile(*words).returncode == -signal.SIGSEGV


@pytest.mark.usefixtures("hostile_decoders")
@pytest.mark.parametrize("kind", [Engine, GenerateEngine])
def test_images_from_memory_and_both_engines(kind: type[Engine] | type[GenerateEngine], tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 4)
    files = sorted(photos.iterdir())
    samples = [
        Sample("file.png", files[0], "caption"),
        Sample("bytes.png", hostile_bytes("crash"), "caption"),
        Sample("member.png", files[1].read_bytes, "caption"),
        Sample("hostile-member.png", lambda: hostile_bytes("crash"), "caption"),
        Sample("opened.png", Image.open(files[2]), "caption"),
    ]
    with kind(*tiny_model(), EngineConfig(GenerationConfig(max_length=4))) as engine:
        errors = {each.file_name: each.error for each in engine.run(samples)}
    crashed = {name for name, error in errors.items() if error is not None}
    assert crashed == {"bytes.png", "hostile-member.png"}
    assert errors["bytes.png"].startswith("the decoder of bytes.png crashed (signal 11: ")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("hostile_decoders")
def test_killing_decoder_processes_loses_no_image(tmp_path: Path) -> None:
    files = sorted(save_photos(tmp_path / "photos", 30).iterdir())
    samples = [Sample(path.name, path, "caption") for path in files]
    killed = set()
    with Engine(*tiny_model(), EngineConfig(GenerationConfig(max_length=4), batch_size=1)) as engine:
        for number, prediction in enumerate(engine.run(samples)):
            assert prediction.error is None
            if number % 8 == 4:
                killed |= kill_children()
    assert len(killed) >= 4
    assert number == 29


def kill_children() -> set[int]:
    """Kill the decoder processes of this one."""
    lines = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    children = {int(each) for line in lines for each in line.split()}
    children = {each for each in children if b"decoder_main" in Path(f"/proc/{each}/cmdline").read_bytes()}
    for child in children:
        os.kill(child, signal.SIGKILL)
    return children


@pytest.mark.usefixtures("hostile_decoders")
def test_training_checks_its_images_in_processes(tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 3, "crash")
    samples = [Sample(path.name, path, "caption", target="a caption") for path in sorted(photos.iterdir())]
    dataset = ResolvedDataset("photos", photos, samples)
    with pytest.raises(DatasetError, match=r"the decoder of .*00-crash\.png crashed \(signal 11: "):
        check_images(dataset)
    assert len(check_images(dataset, on_missing="skip").samples) == 3


class CrashingDataset(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGSEGV)
        return index


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_crash_in_a_process_of_the_training_says_how_to_find_the_image() -> None:
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(CrashingDataset(), num_workers=1, multiprocessing_context="forkserver"))
    with pytest.raises(DatasetError, match="a process that loads images has died: DataLoader worker") as translated:
        raise_lost_worker(caught.value)
    assert "names an image that crashes its decoder" in translated.value.hint
    raise_lost_worker(RuntimeError("another"))


@pytest.mark.usefixtures("hostile_decoders")
def test_server_refuses_hostile_images_and_lives() -> None:
    with live_server(RequestLimits(image_timeout=3, max_image_pixels=200_000)) as server, server.client() as client:
        for fault, reason in (("crash", "crashed (signal 11: "), ("hang", "could not be decoded in 3 s")):
            uri = f"data:image/bmp;base64,{base64.b64encode(hostile_bytes(fault)).decode()}"
            answer = client.post("/v1/predict", json={"image": uri, "task": ["caption"], "max_length": 4})
            assert answer.status_code == 400
            assert reason in json.dumps(answer.json())
        answer = client.post("/v1/predict", json={"image": data_uri(), "task": ["caption"], "max_length": 4})
        assert answer.status_code == 200
