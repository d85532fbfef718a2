"""Edited files: what changes, what stays byte for byte, what is refused, and that other readers understand them."""

import json
import shutil
from pathlib import Path

import pytest

from florence2 import (
    Answer,
    ChangedObject,
    DatasetError,
    EditableDataset,
    FileChangedError,
    GeometryKind,
    Prediction,
    RowChange,
    UserError,
    WordReplacement,
)
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.demo.dataset import make_dataset
from florence2.files import WriteLock
from florence2.results.journal import Journal

CAPTION = DatasetOptions("caption")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "photos", num_samples=3, seed=5)


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def edit(dataset: EditableDataset, row: int, **values) -> None:
    dataset.change([RowChange(row, dataset.rows[row].version, **values)], "edit")


def test_caption_files_are_edited_and_undone(folder: Path) -> None:
    (folder / "0002.txt").unlink()
    files = {path: path.read_bytes() for path in folder.iterdir()}
    dataset = EditableDataset(folder)
    assert [row.text for row in dataset.rows][2] == ""
    edit(dataset, 0, text="a new caption")
    edit(dataset, 2, text="its first caption", is_accepted=True)
    assert [s.target for s in resolve_dataset(folder, CAPTION).samples][::2] == ["a new caption", "its first caption"]
    assert EditableDataset(folder).rows[2].is_accepted
    dataset.undo()
    dataset.undo()
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    assert not dataset.rows[2].is_accepted
    with pytest.raises(UserError, match="no change to undo"):
        dataset.undo()


def test_other_lines_stay_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"file_name":"0000.png",  "text":"one"}\r\n',
        b"\n",
        b'{"text": "caf\\u00e9", "file_name": "0001.png", "other": [1,  2]}\r\n',
        b"not json\n",
        b'{"file_name": "0002.png", "text": "three"}',
    ]
    table = folder / "captions.jsonl"
    table.write_bytes(b"".join(lines))
    dataset = EditableDataset(folder)
    assert dataset.note == ""
    assert [row.locked != "" for row in dataset.rows] == [False, False, True, False]
    edit(dataset, 0, text="zwei\nZeilen")
    edit(dataset, 3, is_accepted=True)
    changed = table.read_bytes().splitlines(keepends=True)
    assert changed[0] == b'\xef\xbb\xbf{"file_name": "0000.png", "text": "zwei\\nZeilen"}\r\n'
    assert changed[1:4] == lines[1:4]
    assert changed[4] == b'{"file_name": "0002.png", "text": "three", "accepted": true}'
    dataset.undo()
    dataset.undo()
    assert table.read_bytes() == b"".join(lines)
    with pytest.raises(UserError, match="cannot be edited"):
        edit(dataset, 2, text="x")


def test_a_caption_file_with_the_text_of_the_row_follows_it(folder: Path) -> None:
    texts = [(folder / f"000{i}.txt").read_text().strip() for i in range(2)]
    (folder / "0001.txt").write_text("words of its own\n")
    rows = [{"file_name": f"000{i}.png", "text": text, "task": "caption"} for i, text in enumerate(texts)]
    table = write_rows(folder / "captions.jsonl", *rows)
    dataset = EditableDataset(table)
    for row in (0, 1):
        edit(dataset, row, text="better")
    assert (folder / "0000.txt").read_text() == "better\n"
    assert (folder / "0001.txt").read_text() == "words of its own\n"


@pytest.mark.parametrize(
    ("task", "kind", "old", "new"),
    [
        ("od", "bboxes", [[10, 20, 100, 120]], ((100, 200, 300, 400),)),
        ("ocr_with_region", "quad_boxes", [[10, 20, 90, 20, 90, 60, 10, 60]], ((1, 2, 300, 4, 300, 400, 1, 400),)),
        ("region_proposal", "bboxes", [[10, 20, 100, 120]], ((0, 0, 999, 999),)),
        ("open_vocabulary_detection", "polygons", [[[1, 2, 30, 4, 5, 60]]], ((10, 20, 300, 40, 50, 600),)),
    ],
)
def test_moved_objects_are_written_as_answer_and_text(folder, task: str, kind: str, old: list, new: tuple) -> None:
    row = {"file_name": "0000.png", "task": task, "answer": {kind: old, "labels": ["cat"] * len(old)}}
    row |= {"input": "cat"} if task.startswith("open") else {}
    table = write_rows(folder / "rows.jsonl", row)
    dataset = EditableDataset(table)
    edit(dataset, 0, objects=(ChangedObject(GeometryKind(kind), "dog", new, 0),))
    [changed] = [json.loads(line) for line in table.read_text().splitlines()]
    assert Prediction.from_json({**changed, "task": task}).answer == Answer.from_dict(
        changed["answer"], dataset.rows[0].task.output_type
    )
    assert dataset.rows[0].objects[0].rings == new
    assert EditableDataset(table).rows[0].objects == dataset.rows[0].objects
    [sample] = resolve_dataset(table, CAPTION).samples
    assert sample.target == changed["text"]
    assert "".join(f"<loc_{value}>" for value in new[0]) in changed["text"]


def test_objects_are_removed_relabelled_and_added(folder: Path) -> None:
    answer = {"bboxes": [[10.2, 20.7, 100, 120], [5, 6, 50, 60]], "labels": ["cat", "dog"], "scores": [0.5, 0.25]}
    table = write_rows(folder / "rows.jsonl", {"file_name": "0000.png", "task": "od", "answer": answer, "score": 0.3})
    dataset = EditableDataset(table)
    box = GeometryKind.BBOXES
    changed = (ChangedObject(box, "cat", origin=0), ChangedObject(box, "eel", ((700, 700, 900, 900),)))
    edit(dataset, 0, objects=changed)
    row = json.loads(table.read_text())
    assert row["answer"]["bboxes"][0] == [10.2, 20.7, 100, 120]
    assert (row["answer"]["labels"], row["answer"]["scores"]) == (["cat", "eel"], [0.5, None])
    assert "score" not in row
    edit(dataset, 0, objects=())
    assert json.loads(table.read_text())["answer"] == {"bboxes": [], "labels": []}


@pytest.mark.parametrize(
    ("rings", "reason"),
    [
        (((1, 2, 3),), "wrong number"),
        (((1, 2, 3, 1000),), "outside of 0 to 999"),
        (((9, 2, 3, 9),), "right or lower side"),
        ((), "wrong number"),
    ],
)
def test_impossible_objects_are_refused(folder: Path, rings: tuple, reason: str) -> None:
    dataset = EditableDataset(folder / "od.jsonl")
    before = (folder / "od.jsonl").read_bytes()
    with pytest.raises(UserError, match=reason):
        edit(dataset, 0, objects=(ChangedObject(GeometryKind.BBOXES, "cat", rings),))
    with pytest.raises(UserError, match="has no `polygons`"):
        edit(dataset, 0, objects=(ChangedObject(GeometryKind.POLYGONS, "cat", ((1, 2, 3, 4, 5, 6),)),))
    for label, reason in (("", "no label"), ("cat<loc_5>", "token of the model")):
        with pytest.raises(UserError, match=reason):
            edit(dataset, 0, objects=(ChangedObject(GeometryKind.BBOXES, label, ((1, 2, 3, 4),)),))
    with pytest.raises(UserError, match="has objects"):
        edit(dataset, 0, text="words")
    assert (folder / "od.jsonl").read_bytes() == before


def test_changes_of_others_are_not_overwritten(folder: Path) -> None:
    table = folder / "caption.jsonl"
    dataset = EditableDataset(table)
    table.touch()  # the same content
    edit(dataset, 0, is_accepted=True)
    lock = WriteLock(table)
    with pytest.raises(UserError, match="another process writes"):
        edit(dataset, 1, is_accepted=True)
    lock.release()
    with pytest.raises(FileChangedError, match="another window"):
        dataset.change([RowChange(0, 0, text="stale")], "edit")
    changed = table.read_bytes() + b"\n"
    table.write_bytes(changed)
    with pytest.raises(FileChangedError, match="another program"):
        dataset.undo()
    assert table.read_bytes() == changed
    captions = EditableDataset(folder)
    (folder / "0001.txt").write_text("meanwhile\n")
    with pytest.raises(FileChangedError, match="another program"):
        captions.change([RowChange(0, 0, text="a"), RowChange(1, 0, text="b")], "edit")
    assert (folder / "0000.txt").read_text() != "a\n"


def test_a_resumed_prediction_keeps_corrected_rows(folder: Path) -> None:
    table = folder.parent / "captions.jsonl"
    with Journal(str(table), run_id="run", image_dir="photos") as journal:
        journal.write(Prediction("0000.png", "<CAPTION>", text="wrong", score=0.5))
        journal.write(Prediction("0001.png", "<CAPTION>", error="no memory"))
    dataset = EditableDataset(table)
    assert [row.error for row in dataset.rows] == ["", "no memory"]
    edit(dataset, 0, text="right", is_accepted=True)
    with Journal(str(table), run_id="run", image_dir="photos") as journal:
        assert [key.id for key in journal.predicted_keys()] == ["0000.png"]
        assert [row["text"] for row in journal.rows()] == ["right"]
    assert resolve_dataset(table, CAPTION).unread_columns == {}


def test_words_are_replaced_literally_in_texts_and_labels(folder: Path) -> None:
    table = write_rows(
        folder / "rows.jsonl",
        {"file_name": "0000.png", "text": "A cat (a.b) in a catalogue"},
        {"file_name": "0001.png", "task": "od", "answer": {"bboxes": [[1, 2, 30, 40]], "labels": ["cat"]}},
        {"file_name": "0002.png", "text": "cat", "error": "failed"},
        {"file_name": "0002.png", "text": ["cat", "kitten"]},
    )
    dataset = EditableDataset(table)
    found = list(WordReplacement("cat", r"d\1g", full_words=True).changes(dataset.rows))
    assert [(each.change.row, each.number) for each in found] == [(0, 1), (1, 1)]
    dataset.change([each.change for each in found], "replace")
    assert [row.words for row in dataset.rows[:2]] == [(r"A d\1g (a.b) in a catalogue",), (r"d\1g",)]
    assert WordReplacement("a.B", "x", match_case=False).apply("a.b aXb A.B")[0] == "x aXb x"
    with pytest.raises(UserError, match="no words"):
        WordReplacement("", "x")


def test_what_cannot_be_edited_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    coco = shutil.copytree(folder, tmp_path / "coco")
    objects = {"bbox": [1, 2, 3, 4], "category_id": 1, "image_id": 1, "id": 1}
    images = [{"id": 1, "file_name": "0000.png", "width": 99, "height": 99}]
    content = {"images": images, "annotations": [objects], "categories": [{"id": 1, "name": "cat"}]}
    (coco / "_annotations.coco.json").write_text(json.dumps(content))
    refused = (
        (tmp_path / "rows.json", "neither a JSONL nor a CSV"),
        (folder / "0000.png", "one image"),
        (tmp_path / "absent", "does not exist"),
        (coco, "in another format"),
    )
    for path, reason in refused:
        with pytest.raises(DatasetError, match=reason):
            EditableDataset(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        EditableDataset(tmp_path / "empty")
    table = write_rows(
        folder / "rows.jsonl",
        {"image": "0000.png", "messages": [{"role": "user", "content": "hi"}]},
        {"file_name": "../secret.png", "text": "outside"},
        {"file_name": "gone.png", "text": "kept"},
    )
    named = write_rows(folder / "captions.jsonl", {"file_name": "0000.png", "text": "a"})
    note = "2 images of the folder not in captions.jsonl, and not shown; the first is 0001.png"
    assert (EditableDataset(folder).note, EditableDataset(named).note) == (note, "")
    rows = EditableDataset(table).rows
    assert "another trainer" in rows[0].locked
    assert "outside" in rows[1].locked
    assert rows[1].image is None
    assert (rows[2].locked, rows[2].error) == ("", "gone.png does not exist")


def test_a_write_that_fails_leaves_every_file_as_it_was(folder: Path) -> None:
    blocker = folder / ".0001.txt.unfinished"  # where the new content of the second file is written
    files = {path: path.read_bytes() for path in folder.iterdir()}
    dataset = EditableDataset(folder)
    changes = [RowChange(row.index, row.version, text="new") for row in dataset.rows]
    blocker.mkdir()
    with pytest.raises(UserError, match="Is a directory") as caught:
        dataset.change(changes, "edit")
    assert "nothing was written" in caught.value.hint
    blocker.rmdir()
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    assert {row.text for row in dataset.change(changes, "edit")} == {"new"}
