import json
from pathlib import Path

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.errors import UserError
from florence2.results.journal import Journal, add_affixes, run_id


def samples(*names: str) -> list[Sample]:
    return [Sample(id=name, image=Path(name), task="<CAPTION>") for name in names]


def answer(name: str, text: str = "a cat", error: str | None = None) -> Prediction:
    return Prediction(name, "<CAPTION>", text=text, answer=None if error else text, error=error)


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_answered_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "captions.jsonl"
    with Journal(str(path), run="r") as journal:
        assert [s.id for s in journal.missing(samples("a.jpg", "b.jpg"))] == ["a.jpg", "b.jpg"]
        journal.write(answer("a.jpg"))
    with Journal(str(path), run="r") as journal:
        assert [s.id for s in journal.missing(samples("a.jpg", "b.jpg"))] == ["b.jpg"]


def test_failed_images_are_asked_again_and_their_line_replaced(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run="r") as journal:
        journal.write(answer("a.jpg", error="torn"))
        journal.write(answer("b.jpg"))
    with Journal(str(path), run="r") as journal:
        assert [s.id for s in journal.missing(samples("a.jpg", "b.jpg"))] == ["a.jpg"]
        journal.write(answer("a.jpg"))
    assert [(r["file_name"], r.get("error")) for r in rows(path)] == [("b.jpg", None), ("a.jpg", None)]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_off_anywhere_is_dropped_and_asked_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run="r") as journal:
        journal.write(answer("a.jpg"))
        journal.write(answer("b.jpg", "ein Käse 猫"))
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(str(path), run="r") as journal:
        assert [s.id for s in journal.missing(samples("a.jpg", "b.jpg"))] == ["b.jpg"]
        journal.write(answer("b.jpg", "ein Käse 猫"))
    assert [r["text"] for r in rows(path)] == ["a cat", "ein Käse 猫"]


def test_another_run_answers_anew_and_only_what_it_answers_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run="old") as journal:
        journal.write(answer("a.jpg", "old a"))
        journal.write(answer("b.jpg", "old b"))
    with Journal(str(path), run="new") as journal:
        assert len(list(journal.missing(samples("a.jpg")))) == 1
        journal.write(answer("a.jpg", "new a"))
    assert {r["file_name"]: r["text"] for r in rows(path)} == {"a.jpg": "new a", "b.jpg": "old b"}
    assert len(rows(path)) == 2


def test_a_failure_of_another_run_loses_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run="old") as journal:
        journal.write(answer("a.jpg", "old a"))
    with Journal(str(path), run="new") as journal:
        journal.write(answer("a.jpg", error="torn"))
    assert "old a" in [r["text"] for r in rows(path)]


def test_fresh_asks_all_again(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run="r") as journal:
        journal.write(answer("a.jpg", "once"))
    with Journal(str(path), run="r", overwrite=True) as journal:
        assert len(list(journal.missing(samples("a.jpg")))) == 1
        journal.write(answer("a.jpg", "twice"))
    assert [r["text"] for r in rows(path)] == ["twice"]


def test_images_of_two_folders_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run="r", image_dir="cats") as journal:
        journal.write(answer("a.jpg"))
    with Journal(str(path), run="r", image_dir="dogs") as journal:
        assert len(list(journal.missing(samples("a.jpg")))) == 1


@pytest.mark.parametrize("content", ["hello\n", '{"no": "name"}\n', "[1, 2]\n"])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="line 1 is no prediction"), Journal(str(path), run="r"):
        pass
    assert path.read_text() == content


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"), Journal(str(tmp_path), run="r"):
        pass


def test_words_are_put_around_captions_and_not_around_boxes() -> None:
    assert add_affixes(answer("a.jpg"), "sks, ", "!").text == "sks, a cat!"
    boxes = Prediction("a.jpg", "<OD>", text="cat<loc_1>", answer={"bboxes": [], "labels": []})
    assert add_affixes(boxes, "sks, ", "!") == boxes


def test_a_run_is_named_by_all_that_shapes_it() -> None:
    assert run_id("m", {"beams": 1}) == run_id("m", {"beams": 1})
    assert run_id("m", {"beams": 1}) != run_id("m", {"beams": 3})
