import json
from pathlib import Path

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.errors import UserError
from florence2.model.answer import Answer
from florence2.model.tasks import OutputType
from florence2.results.affixes import Affixes
from florence2.results.journal import Journal, make_run_id


def samples(*names: str) -> list[Sample]:
    return [Sample(id=name, image=Path(name), task="<CAPTION>") for name in names]


def caption(name: str, text: str = "a cat", error: str | None = None) -> Prediction:
    return Prediction(name, "<CAPTION>", text=text, error=error)


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_predicted_samples_are_not_missing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "captions.jsonl"
    with Journal(str(path), run_id="r") as journal:
        assert [s.id for s in journal.missing(samples("a.jpg", "b.jpg"))] == ["a.jpg", "b.jpg"]
        journal.write(caption("a.jpg"))
    with Journal(str(path), run_id="r") as journal:
        assert [s.id for s in journal.missing(samples("a.jpg", "b.jpg"))] == ["b.jpg"]


def test_failed_images_are_missing_and_their_line_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run_id="r") as journal:
        journal.write(caption("a.jpg", error="truncated"))
        journal.write(caption("b.jpg"))
    with Journal(str(path), run_id="r") as journal:
        assert [s.id for s in journal.missing(samples("a.jpg", "b.jpg"))] == ["a.jpg"]
        journal.write(caption("a.jpg"))
    assert [(r["file_name"], r.get("error")) for r in rows(path)] == [("b.jpg", None), ("a.jpg", None)]


@pytest.mark.parametrize("cut", range(2, 40, 3))
def test_truncated_line_is_removed_and_its_sample_missing(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run_id="r") as journal:
        journal.write(caption("a.jpg"))
        journal.write(caption("b.jpg", "ein Käse 猫"))
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(str(path), run_id="r") as journal:
        assert [s.id for s in journal.missing(samples("a.jpg", "b.jpg"))] == ["b.jpg"]
        journal.write(caption("b.jpg", "ein Käse 猫"))
    assert [r["text"] for r in rows(path)] == ["a cat", "ein Käse 猫"]


def test_another_run_replaces_only_lines_it_predicts(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run_id="old") as journal:
        journal.write(caption("a.jpg", "old a"))
        journal.write(caption("b.jpg", "old b"))
    with Journal(str(path), run_id="new") as journal:
        assert len(list(journal.missing(samples("a.jpg")))) == 1
        journal.write(caption("a.jpg", "new a"))
    assert {r["file_name"]: r["text"] for r in rows(path)} == {"a.jpg": "new a", "b.jpg": "old b"}
    assert len(rows(path)) == 2


def test_error_of_another_run_keeps_earlier_prediction(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run_id="old") as journal:
        journal.write(caption("a.jpg", "old a"))
    with Journal(str(path), run_id="new") as journal:
        journal.write(caption("a.jpg", error="truncated"))
    assert "old a" in [r["text"] for r in rows(path)]


def test_overwrite_discards_lines_of_this_run(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run_id="r") as journal:
        journal.write(caption("a.jpg", "once"))
    with Journal(str(path), run_id="r", overwrite=True) as journal:
        assert len(list(journal.missing(samples("a.jpg")))) == 1
        journal.write(caption("a.jpg", "twice"))
    assert [r["text"] for r in rows(path)] == ["twice"]


def test_same_file_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with Journal(str(path), run_id="r", image_dir="cats") as journal:
        journal.write(caption("a.jpg"))
    with Journal(str(path), run_id="r", image_dir="dogs") as journal:
        assert len(list(journal.missing(samples("a.jpg")))) == 1


@pytest.mark.parametrize("content", ["hello\n", '{"no": "name"}\n', "[1, 2]\n"])
def test_file_with_other_lines_is_refused_and_unchanged(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="line 1 is not a prediction"), Journal(str(path), run_id="r"):
        pass
    assert path.read_text() == content


def test_folder_as_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"), Journal(str(tmp_path), run_id="r"):
        pass


def test_line_of_older_version_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    line = '{"file_name": "a.jpg", "text": "a cat", "task": "<CAPTION>", "folder": "cats", "run": "r"}\n'
    path.write_text(line)
    with pytest.raises(UserError, match="line 1 has the keys of an older version"):
        Journal(str(path), run_id="r")
    assert path.read_text() == line


def test_affixes_are_written_and_follow_ups_get_text_without_them(tmp_path: Path) -> None:
    path, affixes = tmp_path / "captions.jsonl", Affixes("sks, ", "!")
    with Journal(str(path), run_id="r", affixes=affixes) as journal:
        journal.write(caption("a.jpg"))
    assert [r["text"] for r in rows(path)] == ["sks, a cat!"]
    first = Sample("a.jpg", Path("a.jpg"), "<CAPTION>", follow_up=lambda p: samples(f"{p.text}.jpg"))
    with Journal(str(path), run_id="r", affixes=affixes) as journal:
        assert [s.id for s in journal.missing([first])] == ["a cat.jpg"]


def test_affixes_apply_to_captions_and_not_to_boxes() -> None:
    assert Affixes("sks, ", "!").add(caption("a.jpg")).text == "sks, a cat!"
    boxes = Prediction("a.jpg", "<OD>", text="cat<loc_1>", answer=Answer(OutputType.BOXES))
    assert Affixes("sks, ", "!").add(boxes) == boxes
    assert Affixes("sks, ", "!").strip(boxes) == boxes


def test_run_id_depends_on_every_part() -> None:
    assert make_run_id("m", {"beams": 1}) == make_run_id("m", {"beams": 1})
    assert make_run_id("m", {"beams": 1}) != make_run_id("m", {"beams": 3})
