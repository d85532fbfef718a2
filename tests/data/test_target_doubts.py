"""Targets that are probably wrong: counted before a training, issues of `check`, or refused with the reason."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from florence2.data.columns import ColumnMapping
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.errors import DatasetError
from tests.data.formats.annotation_files import check, coco, labelme
from tests.data.images import captioned, image, jsonl

SIZE = (200, 100)
CAT = {"bboxes": [[10, 10, 30, 30]], "labels": ["cat"]}


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    image(folder / "0.png", SIZE)
    return jsonl(folder / "x.jsonl", [{"file_name": "0.png", **row} for row in rows])


def csv_file(folder: Path, text: str) -> Path:
    image(folder / "0.png", SIZE)
    (folder / "x.csv").write_text(text)
    return folder / "x.csv"


SWIFT = {
    "messages": [{"role": "user", "content": "<image><OD>"}, {"role": "assistant", "content": "<ref-object><bbox>"}],
    "objects": {"ref": ["cat"], "bbox": [[0.1, 0.1, 0.3, 0.3]]},
}
FRACTIONS: dict[str, Callable[[Path], Path]] = {
    "jsonl": lambda folder: table(folder, {"task": "od", "answer": {**CAT, "bboxes": [[0.1, 0.1, 0.5, 0.6]]}}),
    "region": lambda folder: table(folder, {"task": "region_to_category", "input": [0.1, 0.1, 1, 1], "text": "cat"}),
    "objects": lambda folder: table(folder, {"objects": {"bbox": [[0.5, 0.5, 0.4, 0.4]], "category": ["cat"]}}),
    "ms-swift": lambda folder: table(folder, SWIFT),
    "csv": lambda folder: csv_file(folder, "image,xmin,ymin,xmax,ymax,label\n0.png,0.1,0,0.5,0.5,cat\n"),
    "coco": lambda folder: coco(image(folder / "0.png", SIZE).with_name("x.json"), [{"bbox": [0, 0.1, 0.9, 0.9]}]),
    "labelme": lambda folder: labelme(folder, [{"label": "cat", "points": [[0.1, 0.1], [0.3, 0.1], [0.2, 0.3]]}]),
}


@pytest.mark.parametrize("kind", FRACTIONS)
def test_fractions_in_place_of_pixels_are_refused(tmp_path: Path, kind: str) -> None:
    path = FRACTIONS[kind](tmp_path)
    path = path.parent if path.name == "0.json" else path
    with pytest.raises(DatasetError, match="are fractions of the image's sides, where pixels belong") as caught:
        resolve_dataset(path, DatasetOptions("od"))
    assert "width" in caught.value.hint
    assert check(path)["issue_counts"] == {"malformed": 1}


def test_a_small_object_in_the_corner_is_no_fraction(tmp_path: Path) -> None:
    path = table(tmp_path, {"task": "od", "answer": {**CAT, "bboxes": [[0, 0, 1, 2]]}})
    assert resolve_dataset(path, DatasetOptions("od")).samples[0].target == "cat<loc_0><loc_0><loc_5><loc_20>"


@pytest.mark.parametrize(
    ("row", "kind", "note"),
    [
        ({"task": "od", "answer": {**CAT, "bboxes": [[150, 50, 90, 60]]}}, "swapped", "1 box with swapped corners"),
        ({"task": "od", "answer": {**CAT, "bboxes": [[150, 50, 290, 60]]}}, "outside", "1 object outside its image"),
        ({"task": "od", "answer": CAT, "width": 100, "height": 50}, "size", "1 image of another size"),
        ({"task": "od", "answer": {**CAT, "labels": ["nan"]}}, "missing", "1 word for a missing value"),
        ({"task": "od", "answer": {**CAT, "labels": [" "]}}, "label", "1 object without a label"),
        ({"task": "od", "text": "a cat on a sofa"}, "text", "1 text without an object where the task needs objects"),
        ({"text": "NaN"}, "missing", "1 word for a missing value"),
        ({"caption": "#N/A"}, "missing", "1 word for a missing value"),
        ({"text": "a \x00cat"}, "characters", "1 text with damaged characters"),
        ({"text": "it\ufffds a cat"}, "characters", "1 text with damaged characters"),
        ({"prefix": "<OD>", "suffix": "cat<loc_10><loc_10><loc_300><loc_1024>"}, "tokens", "location tokens"),
        ({"prefix": "detect cat", "suffix": "<loc0100><loc0100><loc0300><loc0300> cat"}, "tokens", "location tokens"),
    ],
)
def test_doubts_are_issues_and_counted_before_training(tmp_path: Path, row: dict, kind: str, note: str) -> None:
    path = table(tmp_path, row, {"text": "a cat"})
    assert kind in check(path, "caption")["issue_counts"]
    summary = resolve_dataset(path, DatasetOptions("caption")).summary()
    assert f"doubtful: {note}" in summary or f"doubtful: 1 text with {note}" in summary


@pytest.mark.parametrize("row", [{"prompt": "What is it?", "text": "None"}, {"task": "ocr", "text": "NULL"}])
def test_an_answer_may_be_a_word_for_nothing(tmp_path: Path, row: dict) -> None:
    assert check(table(tmp_path, row))["issues"] == []


def test_two_answers_to_one_request_are_counted(tmp_path: Path) -> None:
    rows = [{"task": "od", "answer": {**CAT, "bboxes": [box]}} for box in ([1, 1, 9, 9], [50, 50, 60, 60])]
    path = table(tmp_path, *rows, {"task": "od", "answer": {"bboxes": [], "labels": []}})
    assert check(path)["issue_counts"] == {"contrary": 2}
    summary = resolve_dataset(path, DatasetOptions("od")).summary()
    assert "; 1 empty target; doubtful: 2 further answer to the same request, the first in" in summary
    captions = table(tmp_path / "c", {"text": "one"}, {"text": "two"})
    assert check(captions, "caption")["issues"] == []


def test_doubts_of_a_caption_file_and_of_a_stream_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    captioned(tmp_path / "a.png", "it\ufffds")
    assert "doubtful: 1 text with damaged characters" in resolve_dataset(tmp_path, DatasetOptions("caption")).summary()
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
        tar.add(tmp_path / "a.txt", "a.txt")
    stream = SampleStream(find_sharded_source(str(tmp_path / "t.tar"), ColumnMapping("caption")))
    assert len(stream.first(1)) == 1
    assert "doubtful in the first 1 sample: 1 text with damaged characters, the first in t.tar/a.png" in caplog.text


def test_half_of_a_character_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "0.png")
    for row in (
        {"text": "a \ud83d cat"},
        {"task": "od", "answer": {**CAT, "labels": ["\ud83d"]}},
        {"prompt": "\ud83d", "text": "a"},
    ):
        path = tmp_path / "x.jsonl"
        path.write_text(json.dumps({"file_name": "0.png", **row}))
        with pytest.raises(DatasetError, match=r"has half of a character: `\\ud83d`"):
            resolve_dataset(path, DatasetOptions("caption"))


def test_class_numbers_as_labels_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, {"task": "od", "answer": {**CAT, "labels": [3]}})
    with pytest.raises(DatasetError, match="class numbers in the labels of its `answer`"):
        resolve_dataset(path, DatasetOptions("od"))


def test_positions_as_json_in_a_csv_are_read(tmp_path: Path) -> None:
    answer = json.dumps(CAT).replace('"', '""')
    path = csv_file(tmp_path, f'file_name,task,answer\n0.png,od,"{answer}"\n')
    assert (
        resolve_dataset(path, DatasetOptions("caption")).samples[0].target == "cat<loc_50><loc_100><loc_150><loc_300>"
    )
    path = csv_file(tmp_path, 'file_name,prompt,text\n0.png,Extract,"{""total"": 5}"\n')
    assert resolve_dataset(path, DatasetOptions("caption")).samples[0].target == '{"total": 5}'
