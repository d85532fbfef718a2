"""YOLO datasets as other programs write them: read as objects, or refused with a reason."""

from pathlib import Path

import pytest

from florence2.api import convert_dataset
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.errors import DatasetError
from tests.data.formats.annotation_files import check, coco, read_objects
from tests.data.images import image

LINE = "0 0.5 0.5 0.2 0.2\n"
CAT = ("cat", [40, 40, 60, 60])
CONFIG = "train: images\nnames: [cat]\n"
QUAD = [10, 10, 30, 10, 30, 20, 10, 20]


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write text files, and an image of 100 x 100 where the text is empty."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text:
            path.write_text(text)
        else:
            image(path, (100, 100))
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"Images/a.jpg": "", "Labels/a.txt": LINE, "data.yaml": "train: Images\nnames: [cat]\n"},  # capitals
        {"a.jpg": "", "a.txt": LINE, "classes.txt": "cat\n"},  # LabelImg
        {"images/a.jpg": "", "labels/a.txt": LINE, "classes.txt": "cat\n", "notes.json": "{}"},  # Label Studio
        {"images/a.jpg": "", "labels/a.txt": LINE, "labels/classes.txt": "cat\n"},  # names beside the labels
        {"images/train/a.jpg": "", "labels/train/a.txt": LINE, "obj.names": "cat\n"},  # darknet with splits
        {"obj_train_data/a.jpg": "", "obj_train_data/a.txt": LINE, "obj.names": "cat\n"},  # CVAT's YOLO 1.1
        {"images/a.jpg": "", "labels/a.txt": LINE, "data.yaml": "train: images\nnames: {0: cat, 1: }\n"},  # a blank
    ],
)
def test_yolo_folders_of_other_programs_are_read(tmp_path: Path, files: dict[str, str]) -> None:
    assert list(read_objects(write(tmp_path, files)).values()) == [[CAT]]


def test_yolo_list_of_darknet_names_the_images(tmp_path: Path) -> None:
    write(tmp_path, {"obj_train_data/a.jpg": "", "obj_train_data/b.jpg": "", "obj_train_data/a.txt": LINE})
    write(tmp_path, {"obj.names": "cat", "train.txt": "data/obj_train_data/a.jpg\n"})
    (tmp_path / "obj_train_data").rename(tmp_path / "pictures")
    write(tmp_path, {"train.txt": "data/pictures/a.jpg\n", "labels/readme.md": "no labels"})
    assert read_objects(tmp_path) == {"pictures/a.jpg": [CAT]}


@pytest.mark.parametrize(
    ("line", "shape"),
    [
        ("0 0.5 0.5 0.2 0.2 0.45 0.45 0.9 0.1\n", "[2, 2]"),  # as many numbers as a polygon has
        ("0 0.5 0.5 0.2 0.2 0.45 0.45 2\n", "[1, 3]"),  # with visibility
    ],
)
def test_yolo_keypoints_are_counted_and_their_box_is_read(tmp_path: Path, line: str, shape: str) -> None:
    write(tmp_path, {"images/a.jpg": "", "labels/a.txt": line, "data.yaml": f"{CONFIG}kpt_shape: {shape}\n"})
    assert read_objects(tmp_path) == {"a.jpg": [CAT]}
    assert check(tmp_path)["ignored_shapes"] == {"keypoints": 1}


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"lables/a.txt": LINE, "data.yaml": CONFIG}, "none of the 1 images .* would be .*labels/a.txt"),  # misspelt
        ({"labels/a.txt": LINE, "data.yaml": "train: images\nnames: {cat: 0}\n"}, "`cat` where the number"),
        ({"labels/a.txt": LINE, "data.yaml": "train: images\nnc: 1\n"}, "no `names`"),
        ({"labels/a.txt": LINE, "data.yaml": "train: images\nnames: {1: cat}\n"}, "class 0, which is not in"),
        ({"labels/a.txt": "0.5 .5 .5 .2 .2\n", "data.yaml": CONFIG}, "class 0.5, which is not in"),  # a fraction
        ({"labels/a.txt": "inf .5 .5 .2 .2\n", "data.yaml": CONFIG}, "class inf, which is not in"),  # infinity
        ({"images/a.txt": LINE}, "no images itself|labels of YOLO"),  # no names
    ],
)
def test_yolo_folders_that_cannot_be_read_are_refused(tmp_path: Path, files: dict[str, str], what: str) -> None:
    write(tmp_path, {"images/a.jpg": "", **files})
    with pytest.raises(DatasetError, match=what):
        read_objects(tmp_path)


def test_yolo_lines_are_no_captions(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": "", "a.txt": LINE})
    with pytest.raises(DatasetError, match=r"a\.txt has labels of YOLO, not a caption"):
        resolve_dataset(tmp_path, DatasetOptions("caption"))
    (tmp_path / "a.txt").write_text("7 0.5 litre bottles, 2 for 3.50")
    assert resolve_dataset(tmp_path, DatasetOptions("caption")).samples[0].target == "7 0.5 litre bottles, 2 for 3.50"


def test_yolo_names_that_yaml_reads_as_booleans_are_text(tmp_path: Path) -> None:
    lines = LINE + "1 0.5 0.5 0.4 0.4\n"
    write(tmp_path, {"images/a.jpg": "", "labels/a.txt": lines, "data.yaml": "train: images\nnames: [no, yes]\n"})
    assert [label for label, _ in read_objects(tmp_path)["a.jpg"]] == ["no", "yes"]


def test_yolo_quads_in_pixels_are_read(tmp_path: Path) -> None:
    line = "10 10 30 10 30 20 10 20 big cat 0\n"
    config = "train: ../train/images\nnames: [cat]\n"
    write(tmp_path, {"train/images/a.jpg": "", "train/labelTxt/a.txt": "gsd:1\n" + line, "data.yaml": config})
    assert read_objects(tmp_path) == {"a.jpg": [("big cat", [10, 10, 30, 20])]}
    assert read_objects(tmp_path, "ocr_with_region") == {"a.jpg": [("big cat", QUAD)]}


def test_yolo_images_are_found_in_dataset_dir(tmp_path: Path) -> None:
    write(tmp_path / "ann", {"labels/a.txt": LINE, "data.yaml": CONFIG})
    write(tmp_path / "pictures", {"a.jpg": ""})
    assert read_objects(tmp_path / "ann", dataset_dir=str(tmp_path / "pictures")) == {"a.jpg": [CAT]}


def test_yolo_labels_without_an_image_are_issues(tmp_path: Path) -> None:
    write(tmp_path, {"images/a.jpg": "", "labels/a.txt": LINE, "labels/b.txt": LINE, "labels/notes.txt": "by hand"})
    write(tmp_path, {"data.yaml": CONFIG})
    assert [issue["where"] for issue in check(tmp_path)["issues"]] == [str(tmp_path / "labels" / "b.txt")]


def test_yolo_box_of_nan_is_one_malformed_row(tmp_path: Path) -> None:
    write(tmp_path, {"images/a.jpg": "", "images/b.jpg": "", "data.yaml": CONFIG})
    write(tmp_path, {"labels/a.txt": "0 nan nan .2 .2\n", "labels/b.txt": LINE})
    report = check(tmp_path)
    assert report["issue_counts"]["malformed"] == 1
    assert report["objects"] == {"cat": 1}


@pytest.mark.parametrize(
    ("annotation", "line"),
    [
        ({"bbox": [-3, 10, 233, 20]}, "0 0.5 0.2 1 0.2\n"),  # a box beyond both sides
        ({"bbox": [150, 10, 60, 20], "segmentation": [[150, 10, 210, 10, 210, 30]]}, "0 0.75 0.1 1 0.1 1 0.3\n"),
    ],
)
def test_yolo_lines_are_written_within_the_image(tmp_path: Path, annotation: dict, line: str) -> None:
    image(tmp_path / "a" / "0.png", (200, 100))
    path = coco(tmp_path / "a" / "list.json", [annotation, {"bbox": [300, 10, 5, 5], "segmentation": []}][:1])
    task = "referring_expression_segmentation" if "segmentation" in annotation else "od"
    convert_dataset(dataset=str(path), output=str(tmp_path / "b"), to="yolo", task=task)
    assert (tmp_path / "b" / "labels" / "0.txt").read_text() == line


def test_yolo_objects_outside_the_image_are_counted_by_conversion(tmp_path: Path) -> None:
    image(tmp_path / "a" / "0.png", (200, 100))
    path = coco(tmp_path / "a" / "list.json", [{"bbox": [0, 0, 200, 100]}, {"bbox": [300, 10, 5, 5]}])
    result = convert_dataset(dataset=str(path), output=str(tmp_path / "b"), to="yolo")
    assert (tmp_path / "b" / "labels" / "0.txt").read_text() == "0 0.5 0.5 1 1\n"
    assert "skipped: 1 objects outside the image" in list(result.lines())
