"""Images and captions as other programs leave them: other encodings and normalization forms, splits, and tars."""

import json
import tarfile
import unicodedata
from pathlib import Path

import pytest

from florence2.data.columns import ColumnMapping
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.errors import DatasetError
from tests.data.formats.annotation_files import check, coco
from tests.data.images import captioned, image, jsonl

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def targets(spec: Path | str, task: str = "caption", **options: object) -> list[tuple[str, str | None]]:
    samples = resolve_dataset(spec, DatasetOptions(task, **options)).samples  # type: ignore[arg-type]
    return [(unicodedata.normalize("NFC", sample.id), sample.target) for sample in samples]


@pytest.mark.parametrize(("on_disk", "in_file"), [(NFD, NFC), (NFC, NFD)])
def test_names_are_found_in_any_normalization_form(tmp_path: Path, on_disk: str, in_file: str) -> None:
    for name in ("sidecar", "table", "coco", "yolo", "voc"):
        image(tmp_path / name / ("images" if name == "yolo" else "") / f"{on_disk}.png", (200, 100))
    (tmp_path / "sidecar" / f"{in_file}.txt").write_text("a cup")
    jsonl(tmp_path / "table" / "metadata.jsonl", [{"file_name": f"{in_file}.png", "text": "a cup"}])
    path = coco(tmp_path / "coco" / "list.json", [{"bbox": [0, 0, 200, 100]}])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "images": [{"id": 0, "file_name": f"{in_file}.png"}]}))
    (tmp_path / "yolo" / "labels").mkdir()
    (tmp_path / "yolo" / "labels" / f"{in_file}.txt").write_text("0 .5 .5 1 1\n")
    (tmp_path / "yolo" / "list.txt").write_text(f"images/{in_file}.png\n")
    (tmp_path / "yolo" / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    box = "".join(
        f"<{side}>{at}</{side}>" for side, at in zip(("xmin", "ymin", "xmax", "ymax"), (0, 0, 200, 100), strict=True)
    )
    (tmp_path / "voc" / f"{in_file}.xml").write_text(
        f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
    )
    for name in ("sidecar", "table"):
        assert targets(tmp_path / name) == [(f"{NFC}.png", "a cup")]
    cat = "cat<loc_0><loc_0><loc_999><loc_999>"
    assert targets(path, "od") == targets(tmp_path / "voc", "od") == [(f"{NFC}.png", cat)]
    assert targets(tmp_path / "yolo", "od") == [(f"images/{NFC}.png", cat)]


@pytest.mark.parametrize("content", [b"it\x92s red", b"\xff\xfea\0"])  # cp1252, UTF-16
def test_caption_in_another_encoding_is_skipped_and_reported(tmp_path: Path, content: bytes) -> None:
    captioned(tmp_path / "a.png", "a boat")
    image(tmp_path / "b.png", (30, 10)).with_suffix(".txt").write_bytes(content)
    dataset = resolve_dataset(tmp_path, DatasetOptions("caption", on_missing="skip"))
    assert [sample.id for sample in dataset.samples] == ["a.png"]
    assert f"skipped: 1 that have a caption that cannot be read, the first: {tmp_path}/b.txt" in dataset.summary()
    with pytest.raises(DatasetError, match=r"1 of 2 images .*b\.txt is not UTF-8 text"):
        resolve_dataset(tmp_path, DatasetOptions("caption"))
    (issue,) = check(tmp_path, "caption")["issues"]
    assert (issue["kind"], issue["where"]) == ("malformed", f"{tmp_path}/b.png")
    assert issue["what"].startswith(f"{tmp_path}/b.txt is not UTF-8 text")


def test_image_folder_with_splits_reads_train(tmp_path: Path) -> None:
    for split in ("train", "test"):
        image(tmp_path / split / f"{split}.png")
        jsonl(tmp_path / split / "metadata.jsonl", [{"file_name": f"{split}.png", "text": split}])
    assert targets(tmp_path) == targets(f"{tmp_path}:train") == [("train.png", "train")]
    assert targets(f"{tmp_path}:test") == [("test.png", "test")]
    assert check(tmp_path, "caption")["samples"] == check(f"{tmp_path}:test", "caption")["samples"] == 1
    assert len(targets(tmp_path, recursive=True)) == 2
    captioned(tmp_path / "own.png", "own")
    assert targets(tmp_path) == [("own.png", "own")]


def test_tar_records_are_read_from_any_order(tmp_path: Path) -> None:
    for number in (1, 2):
        captioned(tmp_path / f"{number}.png", f"caption {number}")
    (tmp_path / "3.txt").write_text("a caption of no image")
    with tarfile.open(tmp_path / "u.tar", "w") as tar:
        for name in ("1.png", "2.png", "1.txt", "2.txt", "3.txt"):
            tar.add(tmp_path / name, name)
    expected = [("1.png", "caption 1"), ("2.png", "caption 2")]
    assert targets(tmp_path / "u.tar") == expected
    assert check(tmp_path / "u.tar", "caption")["ignored_shapes"] == {"target without an image": 1}
    stream = find_sharded_source(str(tmp_path / "u.tar"), ColumnMapping("caption")).read(0)
    assert [(sample.id.rpartition("/")[2], getattr(sample, "target", None)) for sample in stream] == expected


def test_record_of_a_tar_that_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        captioned(tmp_path / f"{number}.png", f"caption {number}")
    (tmp_path / "1.txt").write_bytes(b"it\x92s red")
    (tmp_path / "2.json").write_text("{")
    with tarfile.open(tmp_path / "u.tar", "w") as tar:
        for name in ("1.png", "1.txt", "2.png", "2.json", "3.png", "2.png", "3.txt"):
            tar.add(tmp_path / name, name)
    options = DatasetOptions("caption", on_missing="skip")
    dataset = resolve_dataset(tmp_path / "u.tar", options)
    assert [(sample.id, sample.target) for sample in dataset.samples] == [("3.png", "caption 3")]
    summary = dataset.summary()
    assert f"skipped: 2 that have a row that cannot be read, the first: {tmp_path}/u.tar: 1.txt is not UTF" in summary
    assert "not read: 1 earlier file with the same name" in summary
    report = check(tmp_path / "u.tar", "caption")
    assert (report["issue_counts"], report["samples"]) == ({"malformed": 2}, 1)
    stream = SampleStream(find_sharded_source(str(tmp_path / "u.tar"), ColumnMapping("caption")), on_missing="skip")
    assert [sample.target for sample in stream.epoch(0)] == ["caption 3"]


def test_rows_of_a_list_that_cannot_be_read_are_skipped_and_counted(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    rows = [
        b'{"file_name": "a.png", "text": "a cup"}',
        b"{",
        b'{"text": "x"}',
        b'{"file_name": "a.png", "text": "\x92"}',
    ]
    (tmp_path / "list.jsonl").write_bytes(b"\n".join(rows))
    path = tmp_path / "list.jsonl"
    dataset = resolve_dataset(path, DatasetOptions("caption", on_missing="skip"))
    assert [sample.target for sample in dataset.samples] == ["a cup"]
    assert f"skipped: 3 that have a row that cannot be read, the first: {path} line 2 is not JSON" in dataset.summary()
    with pytest.raises(DatasetError, match=r"line 2 is not JSON: .*, the first of 3 rows that cannot be read"):
        resolve_dataset(path, DatasetOptions("caption"))
    report = check(path, "caption")
    assert (report["issue_counts"], report["images"]) == ({"malformed": 3}, 1)
