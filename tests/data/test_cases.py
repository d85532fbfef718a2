"""Cases that people brought, by the command line or the readers under it; each row names its case."""

import json
import logging
import tarfile
from pathlib import Path

import pytest

from florence2.cli.program import main
from florence2.data.columns import ColumnMapping
from florence2.data.resolve import DatasetOptions, resolve_dataset, resolve_images
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.errors import DatasetError
from tests.data.formats.annotation_files import check, coco, labelme, voc, yolo
from tests.data.images import captioned, image, jsonl


def convert(dataset: Path, output: Path, to: str, *flags: str) -> Path:
    assert main(["data", "convert", str(dataset), str(output), "--to", to, *flags]) == 0
    return output


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_stream_counts_the_samples_that_it_skips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # cases C15
    for number in range(3):
        captioned(tmp_path / f"{number}.png", "" if number else "a cup")
    (tmp_path / "1.json").write_text('{"caption": null, "status": "success", "error_message": null}')
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for path in sorted(tmp_path.glob("[012].*")):
            tar.add(path, path.name)
    caplog.set_level(logging.WARNING, "florence2")
    source = find_sharded_source(str(tmp_path / "t.tar"), ColumnMapping("caption"))
    stream = SampleStream(source, on_missing="skip")
    assert [sample.target for sample in stream.epoch(0)] == ["a cup"]
    assert f"{tmp_path}/t.tar: skipped 2 samples, the first: {tmp_path}/t.tar: 1.png" in caplog.text
    caplog.clear()
    assert len(list(stream.epoch(1))) == 1
    assert caplog.text == ""


def test_masks_beside_images_are_left_out_and_counted(tmp_path: Path) -> None:  # cases C18
    captioned(tmp_path / "a.png", "a cup")
    image(tmp_path / "a-masklabel.png")
    image(tmp_path / "b-masklabel.png").with_suffix(".txt").write_text("an image of that name")
    dataset = resolve_dataset(tmp_path, DatasetOptions("caption"))
    assert [sample.id for sample in dataset.samples] == ["a.png", "b-masklabel.png"]
    note = "files that are not read as images: 1 mask; the first is a-masklabel.png"
    assert note in dataset.summary()
    predicted = resolve_images(tmp_path, task="caption")
    assert [sample.id for sample in predicted.samples] == ["a.png", "b-masklabel.png"]
    assert predicted.ignored_files_note() == note
    assert check(tmp_path, "caption")["ignored_files"] == {"mask": 1}


def test_oriented_boxes_survive_yolo(tmp_path: Path) -> None:  # cases D2
    line = "0 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2"
    config = yolo(tmp_path / "in", f"{line}\n")
    assert (convert(config, tmp_path / "y", "yolo") / "labels" / "0.txt").read_text().split() == line.split()
    [row] = rows(convert(tmp_path / "y", tmp_path / "j", "jsonl", "--task", "ocr_with_region"))
    assert row["answer"] == {"quad_boxes": [[20, 10, 60, 10, 60, 20, 20, 20]], "labels": ["cat"]}
    [box] = rows(convert(tmp_path / "y", tmp_path / "k", "jsonl"))
    assert box["answer"] == {"bboxes": [[20, 10, 60, 20]], "labels": ["cat"]}


def test_labels_in_dota_lines_become_yolo_quads(tmp_path: Path) -> None:  # cases D2, corpus roboflow_dataset
    image(tmp_path / "in" / "images" / "a.png", (100, 100))
    (tmp_path / "in" / "labelTxt").mkdir()
    (tmp_path / "in" / "labelTxt" / "a.txt").write_text("10 10 30 10 30 20 10 20 cat 0\n")
    (tmp_path / "in" / "data.yaml").write_text("train: images\nnames: [cat]\n")
    lines = (convert(tmp_path / "in", tmp_path / "y", "yolo") / "labels" / "a.txt").read_text()
    assert lines == "0 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2\n"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("0 .5 .5 .2 .2 .45 .45 2 .5 .5 1", "has keypoints"),  # cases A5: two keypoints with visibility
        ("0 .5 .5 .2 .2 .45 .45 2", "has keypoints"),  # cases A5: one keypoint
    ],
)
def test_keypoints_without_their_shape_are_refused(tmp_path: Path, line: str, what: str) -> None:
    config = yolo(tmp_path, f"{line}\n")
    with pytest.raises(DatasetError, match=what) as caught:
        resolve_dataset(config, DatasetOptions("od"))
    assert "kpt_shape" in caught.value.hint


def test_columns_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    content = [{"file_name": "a.png", "text": "a", "url": "u"}, {"image": "a.png", "text": "b"}]
    path = jsonl(tmp_path / "x.jsonl", content)
    dataset = resolve_dataset(path, DatasetOptions("caption"))
    assert dataset.summary().endswith("; columns that are not read: `url` of 1 row")
    assert check(path, "caption")["unread_columns"] == {"url": 1}


def test_named_text_column_of_a_saved_dataset_is_checked_and_converted(tmp_path: Path) -> None:  # cases A1
    datasets = pytest.importorskip("datasets")
    path = image(tmp_path / "a.png")
    content = {"image": [str(path)], "question": ["What is the total?"], "answers": [["12.00", "12"]]}
    saved = datasets.Dataset.from_dict(content).cast_column("image", datasets.Image())
    saved.save_to_disk(tmp_path / "ds")
    written = rows(convert(tmp_path / "ds", tmp_path / "out", "jsonl", "--text_column", "answers"))
    assert [(row["task"], row["input"], row["text"]) for row in written] == [
        ("<DocVQA>", "What is the total?", ["12.00", "12"])
    ]


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "labelme", "table"])
def test_folder_of_images_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:  # cases B8
    path = {
        "coco": lambda: coco(tmp_path / "x.json", [{"bbox": [0, 0, 2, 2]}]),
        "yolo": lambda: yolo(tmp_path, "0 .5 .5 1 1\n"),
        "voc": lambda: voc(tmp_path, ""),
        "labelme": lambda: labelme(tmp_path, []),
        "table": lambda: jsonl(tmp_path / "x.jsonl", [{"file_name": "a.png", "text": "a"}]),
    }[name]()
    with pytest.raises(DatasetError, match=r"nope is not a folder") as caught:
        resolve_dataset(path, DatasetOptions("od", dataset_dir=tmp_path / "nope"))
    assert caught.value.hint == "pass the folder of the images as --dataset_dir"


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc", "csv", "annotations"])
def test_a_validation_split_has_any_of_its_names(tmp_path: Path, kind: str) -> None:  # Roboflow writes `valid`
    for split in ("train", "valid"):
        folder = tmp_path / split
        if kind == "coco":
            coco(folder / "_annotations.coco.json", [{"bbox": [10, 10, 20, 20], "category_id": 1}])
        elif kind == "yolo":
            yolo(folder, "0 .5 .5 .2 .2\n")
            (folder / "data.yaml").rename(tmp_path / "data.yaml")
            config = "train: ../train/images\nval: ../valid/images\nnames: [cat]\n"
            (tmp_path / "data.yaml").write_text(config)
        elif kind == "voc":
            box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            xml = f"<annotation><object><name>cat</name>{box}</object></annotation>"
            image(folder / f"{split}.png").with_suffix(".xml").write_text(xml)
        elif kind == "csv":
            header = "filename,width,height,class,xmin,ymin,xmax,ymax"
            path = image(folder / f"{split}.png", (100, 100)).with_name("_annotations.csv")
            path.write_text(f"{header}\n{split}.png,100,100,cat,10,10,30,30\n{split}.png,100,100,cat,1,2,3,4\n")
        else:
            coco(tmp_path / "annotations" / f"{split}.json", [{"bbox": [10, 10, 20, 20]}])
        if kind in ("coco", "annotations"):
            image(folder / "0.png", (200, 100))
    for name in ("", ":val", ":valid", ":validation"):
        report = check(f"{tmp_path}{name}")
        assert (report["images"], report["issues"]) == (1, [])
        assert report["objects"] == {"cat": 2 if kind == "csv" else 1}
        images = resolve_dataset(f"{tmp_path}{name}", DatasetOptions("od")).samples
        assert ("valid" if name else "train") in str(images[0].image) or kind == "annotations"


@pytest.mark.parametrize("split", ["", ":val"])
@pytest.mark.parametrize("name", ["annotations/panoptic_val2017.json", "_annotations.coco.json", "panoptic.json"])
def test_a_folder_of_panoptic_files_is_refused_by_its_reason(tmp_path: Path, name: str, split: str) -> None:
    image(tmp_path / "0.png", (200, 100))
    path = coco(tmp_path / name, [{"segments_info": [{"id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}]}])
    if split and path.parent == tmp_path:
        pytest.skip("a folder without splits")
    with pytest.raises(DatasetError) as caught:
        resolve_dataset(f"{tmp_path}{split}", DatasetOptions("od" if "_" in name else "caption"))
    assert "panoptic segmentations, which are not read" in caught.value.what + caught.value.hint
    assert "instances" in caught.value.hint


def test_a_box_that_is_no_number_is_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # B9
    boxes = [{"bbox": [float("nan")] * 4}, {"bbox": [1, 1, 5, 5], "image_id": 1}]
    path = coco(tmp_path / "x.json", boxes, images=2)
    image(tmp_path / "0.png", (200, 100))
    image(tmp_path / "1.png", (200, 100))
    for to in ("jsonl", "yolo", "coco"):
        convert(path, tmp_path / to, to)
        assert "skipped: 1 rows that are issues" in capsys.readouterr().out
    assert [row["file_name"] for row in rows(tmp_path / "jsonl")] == ["1.png"]
    coco(path, boxes[:1])
    assert main(["data", "convert", str(path), str(tmp_path / "none")]) == 2
    assert "none of 1 rows can be read\nhint: run `florence2 data check`" in capsys.readouterr().err
