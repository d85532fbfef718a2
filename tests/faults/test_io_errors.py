"""A disk or network mount that answers calls with EIO: each image has its error, and a restart loses nothing."""

import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from florence2.data.sample import Prediction
from florence2.results.journal import Journal
from tests.faults.test_odd_files import PREDICT, read_rows, run, save_images

SOURCE = Path(__file__).with_name("io_errors.c")
WRITE_LINES = """
from florence2.data.sample import Prediction
from florence2.results.journal import Journal
import sys
try:
    with Journal(sys.argv[1], run_id="r") as journal:
        for name in sys.argv[2:]:
            journal.write(Prediction(name, "<OD>", text="a boat"))
except OSError as error:
    sys.exit(f"{error.strerror}: {error.filename}")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library that lets calls fail."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler for the library that lets calls fail")
    path = tmp_path_factory.mktemp("library") / "io_errors.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, SOURCE, "-ldl"], check=True, capture_output=True)
    return path


def test_runs_on_a_failing_mount_lose_nothing(tmp_path: Path, library: Path) -> None:
    folder = save_images(tmp_path / "photos", *(f"{number}.jpg" for number in range(7)))
    save_images(folder / "gone", "7.jpg")
    save_images(folder / "here", "8.jpg")
    output = tmp_path / "o.jsonl"
    words = (*PREDICT, "--input_path", folder, "--output_path", output, "--recursive")

    first = run(*words, LD_PRELOAD=str(library), IO_ERRORS="write:/o.jsonl:4")
    assert first.returncode == 2
    assert b"Traceback" not in first.stderr
    assert [line for line in first.stderr.decode().splitlines() if line.startswith(("error:", "hint:"))] == [
        f"error: Input/output error: {output}",
        "hint: check the disk, or the connection to its server, then run the command again",
    ]
    assert output.read_bytes().count(b"\n") == 3
    assert not output.read_bytes().endswith(b"\n")  # a line that was cut

    errors = "read:photos/4.jpg,open:photos/5.jpg,stat:photos/6.jpg,readdir:photos/gone"
    second = run(*words, LD_PRELOAD=str(library), IO_ERRORS=errors)
    assert second.returncode == 1, second.stderr
    assert b"3 predictions of an earlier run" in second.stderr
    reasons = {row["file_name"]: row.get("error", "") for row in read_rows(output)}
    assert sorted(reasons) == [*(f"{number}.jpg" for number in range(7)), "here/8.jpg"]
    failed = {name: reason for name, reason in reasons.items() if reason}
    assert sorted(failed) == ["4.jpg", "5.jpg", "6.jpg"]
    assert all("cannot be read" in reason and "Input/output error" in reason for reason in failed.values())
    assert b"1 subfolder cannot be read, run it again; the first: " in second.stderr
    assert b"photos/gone cannot be listed: Input/output error" in second.stderr

    third = run(*words)
    assert third.returncode == 0, third.stderr
    assert b"5 predictions of an earlier run" in third.stderr
    names = Counter(row["file_name"] for row in read_rows(output) if row.get("error") is None)
    assert names == Counter([*(f"{number}.jpg" for number in range(7)), "gone/7.jpg", "here/8.jpg"])


def write_lines(library: Path, failing: str, output: Path, names: list[str]) -> subprocess.CompletedProcess[str]:
    """Write a line for each name in another process, with calls that fail."""
    words = [f"LD_PRELOAD={library}", f"IO_ERRORS={failing}", sys.executable, "-c", WRITE_LINES, str(output), *names]
    return subprocess.run(["env", *words], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(("failing", "lines"), [("fsync:/o.jsonl", 2), ("write:/o.jsonl:2", 1), ("open:/o.jsonl", 0)])
def test_error_of_the_output_names_it_and_keeps_what_is_written(
    tmp_path: Path, library: Path, failing: str, lines: int
) -> None:
    output, names = tmp_path / "o.jsonl", ["a.jpg", "b.jpg"]
    ended = write_lines(library, failing, output, names)
    assert (ended.returncode, ended.stderr.strip()) == (1, f"Input/output error: {output}")
    with Journal(str(output), run_id="r") as journal:
        assert [row["file_name"] for row in journal.rows()] == names[:lines]
        for name in names:
            journal.write(Prediction(name, "<OD>", text="a boat"))
    assert [row["file_name"] for row in read_rows(output)] == names


@pytest.mark.long
def test_output_that_fails_again_and_again_is_complete_at_the_end(tmp_path: Path, library: Path) -> None:
    names, rng, endings = [f"{number:03}.jpg" for number in range(600)], random.Random(0), Counter[str]()
    output = tmp_path / "o.jsonl"
    for _ in range(100):
        call = rng.choice(["write", "write", "fsync", "open", "read", "stat"])
        before = output.read_bytes().count(b"\n") if output.exists() else 0
        failing = f"{call}:/o.jsonl:{rng.randint(1, 5)}"
        ended = write_lines(library, failing, output, names[: before + 5])
        assert "Traceback" not in ended.stderr
        endings[call if ended.returncode else "none"] += 1
        assert output.read_bytes().count(b"\n") >= before
    ended = write_lines(library, "", output, names)
    print(dict(endings))
    assert endings["write"] > 20
    assert ended.returncode == 0, ended.stderr
    assert [row["file_name"] for row in read_rows(output)] == names
