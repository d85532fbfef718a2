"""Two processes on one output file, and caption files that cannot be written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.errors import OptionError
from florence2.results.journal import Journal
from florence2.results.sidecar import SidecarWriter
from tests.faults.test_odd_files import PREDICT, read_rows, run, save_images

HOLDER = """
import sys
from florence2.results.journal import Journal
with Journal(sys.argv[1], run_id="r"):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_second_process_is_refused_until_the_first_ends_or_dies(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg")
    output = tmp_path / "o.jsonl"
    command = [sys.executable, "-c", HOLDER, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        second = run(*PREDICT, "--input_path", folder, "--output_path", output)
        assert second.returncode == 2
        assert b"another process writes" in second.stderr
        assert not output.exists()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert run(*PREDICT, "--input_path", folder, "--output_path", output).returncode == 0
    assert [row["file_name"] for row in read_rows(output)] == ["a.jpg"]
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "o.jsonl"}


def test_journal_that_is_refused_or_closed_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 249}.jsonl"
    with Journal(str(path), run_id="r") as journal:
        journal.write(Prediction("a.jpg", "<CAPTION>", score=float("nan")))
        with pytest.raises(OptionError, match="another process writes"):
            Journal(str(path), run_id="r")
    assert json.loads(path.read_text())["score"] is None
    with Journal(str(path), run_id="r", overwrite=True):
        pass
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_a_link_to_the_output_stays_and_has_one_lock_with_it(tmp_path: Path) -> None:
    target, link = tmp_path / "disk" / "o.jsonl", tmp_path / "o.jsonl"
    target.parent.mkdir()
    target.write_text('{"file_name": "cut')
    link.symlink_to(target)
    with Journal(str(link), run_id="r") as journal:
        journal.write(Prediction("a.jpg", "<CAPTION>"))
        with pytest.raises(OptionError, match="another process writes"):
            Journal(str(target), run_id="r")
    assert link.is_symlink()
    assert [row["file_name"] for row in read_rows(target)] == ["a.jpg"]


@pytest.mark.parametrize("old", [b"it\x92s red\n", b"\xff\xfea\0", b"a\0b\0"])
def test_old_caption_file_that_is_not_utf8_is_an_error_of_its_image(tmp_path: Path, old: bytes) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg", "b.jpg")
    (folder / "a.txt").write_bytes(old)
    output = tmp_path / "o.jsonl"
    words = (*PREDICT, "--input_path", folder, "--output_path", output, "--sidecar", ".txt", "--if_exists", "append")
    result = run(*words)
    errors = {row["file_name"]: row.get("error") for row in read_rows(output)}
    assert result.returncode == 1
    assert "a.txt is not UTF-8" in str(errors["a.jpg"])
    assert errors["b.jpg"] is None
    assert (folder / "a.txt").read_bytes() == old
    assert (folder / "b.txt").exists()


def test_caption_file_of_a_long_name_is_written_or_is_an_error(tmp_path: Path) -> None:
    long, longer = f"{'x' * 248}.jpg", f"{'y' * 251}.jpg"
    folder = save_images(tmp_path / "photos", long, longer, "b.jpg")
    output = tmp_path / "o.jsonl"
    result = run(*PREDICT, "--input_path", folder, "--output_path", output, "--sidecar", ".caption")
    errors = {row["file_name"]: row.get("error") for row in read_rows(output)}
    assert result.returncode == 1
    assert "File name too long" in str(errors[longer])
    assert errors["b.jpg"] is None
    assert errors[long] is not None or (folder / f"{'x' * 248}.caption").exists()
    result = run(*PREDICT, "--input_path", folder, "--output_path", tmp_path / "p.jsonl", "--sidecar", ".txt")
    assert result.returncode == 0
    assert sorted(os.path.splitext(path.name)[1] for path in folder.iterdir()).count(".txt") == 3  # noqa: PTH122


def test_images_with_the_same_caption_file_are_refused(tmp_path: Path) -> None:
    samples = [Sample(name, tmp_path / name, "t") for name in ("a.jpg", "b.jpg", "a.png")]
    with pytest.raises(OptionError, match=r"a\.jpg and a\.png would have the same caption file a\.txt"):
        SidecarWriter(tmp_path, ".txt", "skip").check_samples(samples)
    SidecarWriter(tmp_path, ".txt", "skip").check_samples([*samples[:2], samples[0]])
    with pytest.raises(OptionError, match="would replace images"):
        SidecarWriter(tmp_path, ".png", "overwrite").check_samples(samples[:1])
