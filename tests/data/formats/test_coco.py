"""COCO files as other programs write them: read as objects, or refused with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.validate import check_images
from florence2.errors import DatasetError
from tests.data.formats.annotation_files import check, read_objects
from tests.data.images import image

CAT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
OBJECT = ("cat", [10, 10, 30, 30])
NAN = [float("nan")] * 4


def write(path: Path, *annotations: dict[str, Any], **lists: Any) -> Path:
    """Write a COCO file about `a.jpg` of 100 x 100 with the category 1 cat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    path.write_text(json.dumps({**content, **lists}))
    return path


@pytest.mark.parametrize(
    ("annotations", "lists", "ignored"),
    [
        ([CAT], {"images": [{"id": "1", "file_name": "a.jpg"}]}, {}),  # an id as text
        ([CAT], {"images": [{"id": 1.0, "file_name": "a.jpg"}]}, {}),  # an id as a float
        ([CAT], {"categories": [{"id": "1", "name": "cat"}]}, {}),  # a category id as text
        ([{**CAT, "iscrowd": "0"}], {}, {}),  # a flag as text
        ([CAT, {**CAT, "iscrowd": "1"}, {**CAT, "iscrowd": 1}], {}, {"crowd": 2}),  # crowds
        ([{**CAT, "bbox": [0, 0, 0, 0], "segmentation": [[10, 10, 30, 10, 30, 30]]}], {}, {}),  # an empty box
        ([{**CAT, "segmentation": [10, 10, 30, 10, 30, 30]}], {}, {}),  # a polygon without a list around it
        ([{**CAT, "segmentation": [[10, 10, 30, 30]]}], {}, {"polygon without three corners": 1}),  # a line
        ([{**CAT, "keypoints": [15, 15, 2]}], {}, {"keypoints": 1}),  # keypoints
    ],
)
def test_coco_objects_of_other_programs_are_read(
    tmp_path: Path, annotations: list[dict[str, Any]], lists: dict[str, Any], ignored: dict[str, int]
) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    write(tmp_path / "_annotations.coco.json", *annotations, **lists)
    assert read_objects(tmp_path) == {"a.jpg": [OBJECT]}
    assert check(tmp_path)["ignored_shapes"] == ignored


@pytest.mark.parametrize(
    ("annotations", "lists", "what"),
    [
        (
            [CAT],
            {"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]},
            "two names for the category id 1",
        ),
        ([CAT], {"categories": [{"id": 1}]}, "the category 1 without a `name`"),  # a category without a name
        ([CAT], {"images": [{"id": 1, "file_name": n} for n in ("a.jpg", "b.jpg")]}, "two images with the id 1"),
        ([{**CAT, "image_id": 9}], {}, "no annotation of .* annotation 1 of image 9"),  # ids that do not meet
        ([], {}, "has no annotations"),  # a list of images only
        ([{**CAT, "iscrowd": 1}], {}, "has no object that can be read, only 1 crowd"),  # crowds only
        ([{**CAT, "segments_info": []}], {}, "panoptic"),  # panoptic segmentation
    ],
)
def test_coco_files_without_usable_objects_are_refused(
    tmp_path: Path, annotations: list[dict[str, Any]], lists: dict[str, Any], what: str
) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    write(tmp_path / "_annotations.coco.json", *annotations, **lists)
    with pytest.raises(DatasetError, match=what):
        read_objects(tmp_path)


def test_coco_annotations_of_unlisted_images_are_issues(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    path = write(tmp_path / "x.json", CAT, {**CAT, "id": 2, "image_id": 99})
    report = check(path)
    assert report["issues"] == [
        {"kind": "unlisted", "where": f"{path} annotation 2 of image 99", "what": "its image is not listed"}
    ]
    dataset = check_images(resolve_dataset(path, DatasetOptions("od")))
    assert dataset.summary().endswith(
        f"not read: 1 annotation of an image that is not listed, the first in {path} annotation 2 of image 99"
    )


def test_coco_box_of_nan_is_one_malformed_row(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    image(tmp_path / "b.jpg", (101, 100))
    images = [{"id": number, "file_name": name} for number, name in enumerate(("a.jpg", "b.jpg"), start=1)]
    path = write(tmp_path / "x.json", {**CAT, "bbox": NAN}, {**CAT, "image_id": 2}, images=images)
    report = check(path)
    assert report["issue_counts"] == {"malformed": 1}
    assert report["objects"] == {"cat": 1}
    with pytest.raises(DatasetError, match="image 1 has an `answer` that cannot be encoded"):
        resolve_dataset(path, DatasetOptions("od"))
    assert [each.id for each in resolve_dataset(path, DatasetOptions("od", on_missing="skip")).samples] == ["b.jpg"]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_default.json", "images/default/a.jpg"),  # CVAT
        ("annotations/instances_Train.json", "images/Train/Data/a.jpg"),  # CVAT with a subset and folders
        ("annotations/instances_validation.json", "images/validation/a.jpg"),  # only a validation split
        ("annotations/person_keypoints_train2017.json", "train2017/a.jpg"),  # keypoints only
        ("annotations/train.json", "images/a.jpg"),  # no kind in the name
    ],
)
def test_coco_folders_of_other_programs_are_read(tmp_path: Path, annotations: str, images: str) -> None:
    image(tmp_path / images, (100, 100))
    path = write(tmp_path / annotations, CAT)
    assert list(read_objects(tmp_path).values()) == list(read_objects(path).values()) == [[OBJECT]]


def test_coco_folder_prefers_objects_of_the_split(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg", (100, 100))
    for name, label in (("instances_train", "cat"), ("instances_val", "dog"), ("stuff_train", "sky")):
        write(tmp_path / "annotations" / f"{name}.json", CAT, categories=[{"id": 1, "name": label}])
    write(tmp_path / "annotations" / "captions_train.json", {"id": 1, "image_id": 1, "caption": "a cat"})
    assert read_objects(tmp_path) == {"a.jpg": [OBJECT]}
    assert read_objects(f"{tmp_path}:validation") == {"a.jpg": [("dog", [10, 10, 30, 30])]}
    write(tmp_path / "annotations" / "instances_train2.json", CAT)
    with pytest.raises(DatasetError, match=r"several COCO files: instances_train.json, instances_train2.json"):
        read_objects(tmp_path)


def test_coco_captions_are_read_from_a_folder(tmp_path: Path) -> None:
    image(tmp_path / "images" / "train" / "a.jpg")
    image(tmp_path / "images" / "train" / "b.jpg")
    images = [{"id": number, "file_name": name} for number, name in enumerate(("a.jpg", "b.jpg"), start=1)]
    path = tmp_path / "annotations" / "captions_train.json"
    write(path, {"id": 1, "image_id": 1, "caption": "hello"}, images=images, categories=[])
    dataset = resolve_dataset(tmp_path, DatasetOptions("caption", on_missing="skip"))
    assert [(sample.id, sample.target) for sample in dataset.samples] == [("a.jpg", "hello")]
    assert [skipped.id for skipped in dataset.skipped] == [
        "b.jpg"
    ]  # an image without a caption is not dropped silently


@pytest.mark.parametrize("first", [{"info": None}, {"name": "x"}, {"categories": None}])
def test_coco_keys_have_any_order(tmp_path: Path, first: dict[str, Any]) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    path = write(tmp_path / "x.json", CAT)
    path.write_text(json.dumps({**first, **json.loads(path.read_text())}))
    assert read_objects(path) == {"a.jpg": [OBJECT]}
