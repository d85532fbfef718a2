"""CSV tables corrected in place: which bytes change, what other readers make of them, and what is refused."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from florence2 import ChangedObject, DatasetError, EditableDataset, GeometryKind, RowChange, UserError
from florence2.cli.program import main
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.demo.dataset import make_dataset
from florence2.results.editing.edited_tables import CsvTable

CAPTION = DatasetOptions("caption", on_missing="skip")
LINES = [
    b"\xef\xbb\xbfid,file_name,caption,score,note\r\n",
    b'7,0000.png,"a cat, sitting",0.50,"5"" tall"\r\n',
    b"\r\n",
    b'8,0001.png,"two\nlines",0.25,\r\n',
    b"9,0002.png,caf\xc3\xa9\r\n",
    b"x,0002.png,a,b,c,d,e\r\n",
    b'"10","0002.png","quoted","0.1","all"',
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = make_dataset(tmp_path / "photos", num_samples=3, seed=5)
    for caption in folder.glob("*.txt"):
        caption.unlink()
    return folder


@pytest.fixture
def table(folder: Path) -> Path:
    (folder / "metadata.csv").write_bytes(b"".join(LINES))
    return folder / "metadata.csv"


def edit(dataset: EditableDataset, row: int, **values) -> None:
    dataset.change([RowChange(row, dataset.rows[row].version, **values)], "edit")


def records(path: Path) -> list[bytes]:
    return CsvTable(path).split(path.read_bytes())


def test_a_text_changes_its_own_line_alone(table: Path) -> None:
    dataset = EditableDataset(table.parent)
    assert dataset.table == table
    assert [row.text for row in dataset.rows] == ["a cat, sitting", "two\nlines", "café", "", "quoted"]
    assert [row.score for row in dataset.rows] == [0.5, 0.25, None, None, 0.1]
    assert "more fields" in dataset.rows[3].locked
    edit(dataset, 0, text='a "dog", sitting')
    edit(dataset, 1, text="new\nlines")
    edit(dataset, 4, text="still quoted")
    changed = records(table)
    assert changed[1] == b'7,0000.png,"a ""dog"", sitting",,"5"" tall"\r\n'
    assert changed[3] == b'8,0001.png,"new\nlines",,\r\n'
    assert changed[6] == b'"10","0002.png","still quoted","","all"'
    assert [changed[i] for i in (0, 2, 4, 5)] == [LINES[i] for i in (0, 2, 4, 5)]
    targets = [sample.target for sample in resolve_dataset(table.parent, CAPTION).samples]
    assert targets == ['a "dog", sitting', "new\nlines", "café", "still quoted"]
    for _ in range(3):
        dataset.undo()
    assert table.read_bytes() == b"".join(LINES)


def test_a_new_column_is_added_to_every_line(table: Path) -> None:
    dataset = EditableDataset(table)
    edit(dataset, 2, is_accepted=True)
    assert records(table) == [
        LINES[0].replace(b"note", b"note,accepted"),
        LINES[1].replace(b"\r\n", b",\r\n"),
        LINES[2],
        LINES[3].replace(b"\r\n", b",\r\n"),
        b"9,0002.png,caf\xc3\xa9,,,true\r\n",
        LINES[5],
        LINES[6] + b",",
    ]
    assert [row.is_accepted for row in EditableDataset(table).rows] == [False, False, True, False, False]
    edit(dataset, 4, is_accepted=True)
    edit(dataset, 2, is_accepted=False)
    assert records(table)[4] == b"9,0002.png,caf\xc3\xa9,,,\r\n"
    with table.open(encoding="utf-8-sig", newline="") as file:
        assert [row["accepted"] for row in csv.DictReader(file)] == ["", "", "", "d", "true"]
    for _ in range(3):
        dataset.undo()
    assert table.read_bytes() == b"".join(LINES)


def test_objects_are_written_as_text_with_location_tokens(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "od.jsonl").read_text().splitlines()]
    table = folder / "od.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "task", "text", "answer"])
        writer.writerows([row["file_name"], row["task"], row["text"], ""] for row in rows)
    dataset = EditableDataset(table)
    first = dataset.rows[0].objects
    assert first is not None
    assert [each.label for each in first] == rows[0]["answer"]["labels"]
    new = ChangedObject(GeometryKind.BBOXES, "newt", ((0, 0, 499, 499),))
    edit(dataset, 0, objects=(new, *(ChangedObject(each.kind, each.label, origin=i) for i, each in enumerate(first))))
    [sample, *others] = resolve_dataset(table, DatasetOptions("od")).samples
    assert str(sample.target).startswith("newt<loc_0><loc_0><loc_499><loc_499>")
    assert [str(each.target) for each in others] == [row["text"] for row in rows[1:]]
    assert main(["data", "check", str(table)]) == 0
    again = EditableDataset(table).rows[0].objects
    assert again is not None
    assert len(again) == len(first) + 1


def test_what_a_csv_cannot_hold_is_refused(folder: Path, tmp_path: Path) -> None:
    table = folder / "rows.csv"
    table.write_text("file_name,task,text\n0000.png,ocr,LOVE\n")
    dataset = EditableDataset(table)
    with pytest.raises(UserError, match="empty text cannot be written to a CSV"):
        edit(dataset, 0, text="")
    assert table.read_text().endswith("0000.png,ocr,LOVE\n")
    table.write_bytes(b"file_name,text\n0000.png,caf\xe9\n")
    with pytest.raises(DatasetError, match="not UTF-8"):
        EditableDataset(table)


def test_a_folder_with_two_tables_shows_one_and_names_the_other(table: Path) -> None:
    (table.parent / "metadata.jsonl").write_text('{"file_name": "0000.png", "text": "a"}\n')
    assert "metadata.csv of the folder is not shown" in EditableDataset(table.parent).note


def test_parquet_is_refused_and_reviewed_after_its_conversion(folder: Path, tmp_path: Path, capsys) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"file_name": ["0000.png", "0001.png"], "text": ["one", "two"]})
    frame.to_parquet(folder / "metadata.parquet")
    for path in (folder, folder / "metadata.parquet"):
        with pytest.raises(DatasetError, match="is a Parquet file, whose rows cannot be changed one by one") as error:
            EditableDataset(path)
        words = error.value.hint.split("`")[1].split()
    assert words[:3] == ["florence2", "data", "convert"]
    command = [sys.executable, "-m", *words[:-1], str(tmp_path / "new")]
    subprocess.run(command, check=True, capture_output=True)
    dataset = EditableDataset(tmp_path / "new")
    assert [row.text for row in dataset.rows] == ["one", "two"]
    edit(dataset, 1, text="zwei")
    targets = [sample.target for sample in resolve_dataset(tmp_path / "new", CAPTION).samples]
    assert targets[:2] == ["one", "zwei"]
