"""Runs that are killed or interrupted at any moment and started again: nothing is missing or done twice."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from florence2.api import predict
from florence2.data.sample import Prediction
from florence2.errors import DatasetError
from florence2.results.journal import Journal
from tests.faults import kills
from tests.faults.test_odd_files import read_rows, save_images

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="kills by POSIX signals")


@needs_signals
def test_killed_predictions_equal_uninterrupted_ones() -> None:
    counts = kills.main("predict", 2)
    assert counts["kills"] == 2
    assert counts["predictions"] >= kills.IMAGES


@needs_signals
@pytest.mark.long
def test_many_killed_predictions_equal_uninterrupted_ones() -> None:
    assert kills.main("predict", 200)["kills"] == 200


@needs_signals
def test_killed_trainings_equal_uninterrupted_ones() -> None:
    assert kills.main("train", 1)["kills"] == 1


@needs_signals
@pytest.mark.long
def test_many_killed_trainings_equal_uninterrupted_ones() -> None:
    assert kills.main("train", 50)["kills"] == 50


def test_run_interrupted_between_caption_file_and_line_writes_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg", "mine.jpg")
    (folder / "mine.txt").write_text("my own caption\n")
    os.utime(folder / "mine.txt", (1e9, 1e9))
    options: dict[str, Any] = {"input_path": str(folder), "output_path": str(tmp_path / "o.jsonl"), "max_length": 4}
    write = Journal.write

    def write_one(journal: Journal, prediction: Prediction) -> None:
        if journal._predicted:
            raise KeyboardInterrupt
        write(journal, prediction)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write_one)
        with pytest.raises(KeyboardInterrupt):
            predict(model_path="demo", **options, sidecar=".txt")
    assert len(list(folder.glob("[abc].txt"))) == 2
    assert len(read_rows(tmp_path / "o.jsonl")) == 1
    predict(model_path="demo", **options, sidecar=".txt")
    assert sorted(row["file_name"] for row in read_rows(tmp_path / "o.jsonl")) == ["a.jpg", "b.jpg", "c.jpg"]
    assert (folder / "mine.txt").read_text() == "my own caption\n"
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "o.jsonl"}
    (folder / "b.txt").write_text("corrected\n")
    (tmp_path / "o.jsonl").unlink()
    predict(model_path="demo", **options, sidecar=".txt")  # a new run skips what has a caption file
    assert not (tmp_path / "o.jsonl").exists()


def test_line_cut_at_every_byte_is_predicted_again(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with Journal(str(path), run_id="r") as journal:
        journal.write(Prediction("a.jpg", "<OD>", text='café\u2028 \\ "x"', score=0.5))
        journal.write(Prediction("猫.jpg", "<OD>", text="ein Boot"))
        journal.write(Prediction(os.fsdecode(b"\xff.jpg"), "<OD>", text="un bateau"))
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 3
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        complete = content[:length].count(b"\n") + content[:length].endswith(b"}")
        with Journal(str(path), run_id="r") as journal:
            assert len(list(journal.rows())) == complete
            assert path.read_bytes() == b"".join(lines[:complete])
            for line in lines:
                journal.write(Prediction.from_json(json.loads(line)))
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"my only notes", b"\x89PNG\r\n\x1a\n\0\0\rIHDR\0\0\n", b'{"a": 1}', b"\0\0ftyp\n"]
)
def test_a_file_that_no_run_wrote_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"notes\.txt line 1 is not a prediction"):
        Journal(str(path), run_id="r")
    assert path.read_bytes() == content


def test_edits_by_hand_are_read(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with Journal(str(path), run_id="r") as journal:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            journal.write(Prediction(name, "<OD>", text="a boat"))
    first, second, third = path.read_bytes().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + third + b"\r\n\r\n" + first)
    with Journal(str(path), run_id="r") as journal:
        assert [row["file_name"] for row in journal.rows()] == ["c.jpg", "a.jpg"]
        journal.write(Prediction("b.jpg", "<OD>", text="a boat"))
    assert path.read_bytes().splitlines() == [third, first, second]


def test_zeros_after_a_power_cut_are_no_prediction(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with Journal(str(path), run_id="r") as journal:
        journal.write(Prediction("a.jpg", "<OD>", text="a boat"))
        journal.write(Prediction("b.jpg", "<OD>", text="a dog"))
    first, second = path.read_bytes().splitlines(keepends=True)
    for lost in (b"\0" * len(second), second[:5] + b"\0" * 40, b"\0" * 40 + second[-3:]):
        path.write_bytes(first + lost)
        with Journal(str(path), run_id="r") as journal:
            assert [row["file_name"] for row in journal.rows()] == ["a.jpg"]
            journal.write(Prediction("b.jpg", "<OD>", text="a dog"))
        assert path.read_bytes() == first + second
