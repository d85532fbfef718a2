"""A disk that becomes full while a run writes: two lines, exit code 2, and nothing lost once there is space again."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.kills import COMMON, make_images
from tests.faults.test_odd_files import read_rows, run
from tests.training.images import save_calm, save_photos

IMAGES = 12


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of a size in bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if sys.platform != "linux" or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, rest: int) -> Path:
    """Fill a disk up to `rest` bytes, and return the file that does it."""
    ballast = disk / "ballast"
    state = os.statvfs(disk)
    ballast.write_bytes(bytes(max(state.f_bavail * state.f_frsize - rest, 0)))
    return ballast


def assert_is_explained(result: subprocess.CompletedProcess[bytes]) -> None:
    errors = [line for line in result.stderr.decode().splitlines() if line.startswith(("error:", "hint:"))]
    assert result.returncode == 2, (result.returncode, result.stderr[-2000:])
    assert len(errors) == 2, result.stderr[-2000:]
    assert "No space left on device" in errors[0]
    assert b"Traceback" not in result.stderr


def predict_on_full_disk(folder: Path, rng: random.Random) -> str:
    """Predict onto a disk with little space, free some, and predict again; return how the first run ended."""
    with small_disk(folder / "disk", 4 << 20) as disk:
        make_images(disk / "images", IMAGES)
        paths = ("--input_path", disk / "images", "--output_path", disk / "o.jsonl", "--save_images", disk / "drawn")
        words = ("predict", *COMMON, *paths, "--sidecar", ".txt", "--export", "jsonl")
        ballast = fill(disk, 4096 * rng.randrange(40))
        first = run(*words)
        if first.returncode != 0:
            assert_is_explained(first)
        ballast.unlink()
        second = run(*words)
        assert second.returncode == 0, second.stderr
        names = Counter(row["file_name"] for row in read_rows(disk / "o.jsonl"))
        assert names == Counter(f"{number:02}.png" for number in range(IMAGES))
        assert len(list((disk / "drawn").iterdir())) == IMAGES
        assert len(list((disk / "images").glob("*.txt"))) == IMAGES
        assert all(path.stat().st_size for path in disk.rglob("*") if path.is_file())
        assert len(read_rows(disk / "o-jsonl" / "metadata.jsonl")) == IMAGES
        hidden = {path.name for path in disk.rglob(".*")}
        assert not hidden
    return "complete" if first.returncode == 0 else "full"


def test_prediction_on_a_full_disk_resumes(tmp_path: Path) -> None:
    assert predict_on_full_disk(tmp_path, random.Random(2)) == "full"


@pytest.mark.long
def test_many_predictions_on_full_disks_resume(tmp_path: Path) -> None:
    rng, endings = random.Random(0), Counter[str]()
    for number in range(100):
        (tmp_path / str(number)).mkdir()
        endings[predict_on_full_disk(tmp_path / str(number), rng)] += 1
    print(json.dumps(endings))
    assert endings["full"] > 50


def test_training_on_a_full_disk_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        words = [
            "train",
            "--dataset",
            tmp_path / "photos",
            "--model_id",
            tmp_path / "model",
            "--output_dir",
            disk / "r",
        ]
        words += ["--epochs", "4", "--batch_size", "4", "--save_every_n_steps", "1", "--device", "cpu"]
        words += ["--trainer_args", "save_total_limit=3"]
        ballast = fill(disk, 900 << 10)
        first = run(*words)
        assert_is_explained(first)
        saved = {path.name for path in (disk / "r").glob("checkpoint-*")}
        ballast.unlink()
        second = run(*words, "--resume", "auto")
        assert second.returncode == 0, second.stderr
        if saved:
            assert b"resuming from" in second.stderr
        assert (disk / "r" / "adapter_model.safetensors").exists()
        assert not (disk / "r" / ".unfinished").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_a_process_without_memory_ends_in_two_lines(tmp_path: Path) -> None:
    """As on clusters whose jobs have a limit of virtual memory."""
    code = (
        "import resource, sys; from florence2.cli.program import run_program; "
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20)); run_program(sys.argv[1:])"
    )
    words = [
        "predict",
        "--model_path",
        "demo",
        "--input_path",
        str(tmp_path),
        "--output_path",
        "-",
    ]
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith("error: the system gives this process no more memory or threads: ")
    assert "ulimit -a" in hint
