"""Exports of programs as people have them: unfinished, moved to another machine, or with other habits."""

import json
from pathlib import Path
from typing import Any

import pytest

from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.errors import DatasetError
from tests.data.formats.annotation_files import check, read_objects
from tests.data.images import image

BOX = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0}
CAT = [("cat", [10, 10, 30, 30])]


def region(**value: Any) -> dict[str, Any]:
    return {"id": "r", "to_name": "image", "original_width": 100, "original_height": 100, "value": value}


def labeled(name: str, *results: dict[str, Any], **entry: Any) -> dict[str, Any]:
    return {"data": {"image": name}, "annotations": [{"result": list(results), **entry}]}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


RECTANGLE = region(**BOX, rectanglelabels=["cat"])


@pytest.mark.parametrize(
    ("tasks", "objects", "ignored"),
    [
        ([labeled("b.jpg")], CAT, {}),  # submitted without a region: nothing is there
        ([{"data": {"image": "b.jpg"}, "annotations": []}], CAT, {"task without an annotation": 1}),
        ([labeled("b.jpg", was_cancelled=True)], CAT, {"task without an annotation": 1}),
        ([labeled("b.jpg", {**region(format="rle", rle=[1], brushlabels=["cat"])})], CAT, {"brushlabels": 1}),
    ],
)
def test_label_studio_tasks_that_are_not_labeled_teach_nothing(
    tmp_path: Path, tasks: list, objects: list, ignored: dict
) -> None:
    for name, size in (("a.jpg", (100, 100)), ("b.jpg", (90, 90))):
        image(tmp_path / name, size)
    path = write(tmp_path / "p.json", [labeled("a.jpg", RECTANGLE), *tasks])
    found = read_objects(path)
    assert found.pop("a.jpg") == objects
    assert found == ({} if ignored else {"b.jpg": []})
    assert check(path)["ignored_shapes"].items() >= ignored.items()


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([region(**BOX, rectanglelabels=["cat", "black"])], [*CAT, ("black", [10, 10, 30, 30])]),
        (
            [
                {**region(**BOX), "type": "rectangle"},
                {**region(**BOX, labels=["Text"]), "type": "labels"},
                {**region(**BOX, text=["EXIT"]), "type": "textarea"},
            ],
            [("EXIT", [10, 10, 30, 30])],
        ),
    ],
)
def test_label_studio_regions(tmp_path: Path, results: list, expected: list) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    assert read_objects(write(tmp_path / "p.json", [labeled("a.jpg", *results)])) == {"a.jpg": expected}


@pytest.mark.parametrize(
    ("task", "what"),
    [
        (labeled("a.jpg", RECTANGLE, {**RECTANGLE, "id": "s", "to_name": "image2"}), "labels of several images"),
        (labeled("a.jpg", {**RECTANGLE, "image_rotation": 90}), "was rotated by 90 degrees in Label Studio"),
        (labeled("data:image/png;base64,iVBORw0KGgo=", RECTANGLE), "has its image as base64"),
        ({"data": {"image": "a.jpg"}, "annotations": [], "predictions": [{}]}, "has an annotation"),
    ],
)
def test_label_studio_tasks_that_are_refused(tmp_path: Path, task: dict, what: str) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    with pytest.raises(DatasetError, match=what) as caught:
        resolve_dataset(write(tmp_path / "p.json", [task]), DatasetOptions("od"))
    assert caught.value.hint


def test_label_studio_names_of_uploads(tmp_path: Path) -> None:
    tasks = [labeled(f"/data/upload/1/{digest}-a%20b.jpg", RECTANGLE) for digest in ("ab12", "ff12")]
    for digest, size in (("ab12", (100, 100)), ("ff12", (90, 90))):
        image(tmp_path / f"{digest}-a b.jpg", size)
    path = write(tmp_path / "p.json", tasks)
    assert read_objects(path) == {"ab12-a b.jpg": CAT, "ff12-a b.jpg": CAT}
    image(tmp_path / "a b.jpg", (100, 100))  # one file, of one of the two uploads
    with pytest.raises(DatasetError, match="both match"):
        read_objects(path)


@pytest.mark.parametrize(
    "task",
    [
        labeled("a.jpg", {"type": "textarea", "value": {"text": ["a red square"]}}),
        {"image": "/data/upload/1/ab12-a.jpg", "id": 1, "caption": "a red square", "annotation_id": 3},
    ],
)
def test_label_studio_captions(tmp_path: Path, task: dict) -> None:
    image(tmp_path / "a.jpg")
    [sample] = resolve_dataset(write(tmp_path / "p.json", [task]), DatasetOptions("caption")).samples
    assert (sample.id, sample.task, sample.target) == ("a.jpg", "<CAPTION>", "a red square")


def test_label_studio_csv_is_refused_by_name(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.csv", "image,id,label,annotator,annotation_id,lead_time\n/data/upload/1/a.jpg,1,[],1,1,1\n"
    )
    with pytest.raises(DatasetError, match="is the CSV of Label Studio"):
        resolve_dataset(path, DatasetOptions("od"))


def coco(*names: str, **annotation: Any) -> dict[str, Any]:
    images = [{"id": n, "file_name": name, "width": 100, "height": 100} for n, name in enumerate(names)]
    box = {"bbox": [10, 10, 20, 20], "category_id": 1, **annotation}
    rows = [{"id": n, "image_id": n, **box} for n in range(len(names))]
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}


def test_names_of_two_images_never_match_one_file(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    path = write(tmp_path / "x.json", coco("x/a.jpg", "y/a.jpg"))
    with pytest.raises(DatasetError, match=r"`y/a.jpg` and `x/a.jpg` both match .*a\.jpg"):
        resolve_dataset(path, DatasetOptions("od"))


def test_an_image_that_two_subfolders_have_is_not_guessed(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        image(tmp_path / "images" / folder / "a.jpg", (100, 100))
    path = write(tmp_path / "annotations" / "instances_train.json", coco("a.jpg"))
    with pytest.raises(DatasetError, match=r"`a.jpg` is in .*x/ and in .*y/") as caught:
        resolve_dataset(path, DatasetOptions("od"))
    assert "--dataset_dir" in caught.value.hint
    assert read_objects(path, dataset_dir=str(tmp_path / "images" / "x")) == {"a.jpg": CAT}


def test_coco_names_in_another_case_and_of_lvis(tmp_path: Path) -> None:
    image(tmp_path / "images" / "A.JPG", (100, 100))
    assert read_objects(write(tmp_path / "x.json", coco("a.jpg"))) == {"A.JPG": CAT}
    content = coco("")
    content["images"][0] |= {"file_name": None, "coco_url": "http://images.example/train2017/b.jpg"}
    image(tmp_path / "train2017" / "b.jpg", (100, 100))
    assert read_objects(write(tmp_path / "lvis.json", content)) == {"train2017/b.jpg": CAT}


def test_a_mask_of_another_size_is_not_read(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    image(tmp_path / "a.jpg", (100, 100))
    mask = {"size": [10, 10], "counts": [22, 3, 75]}
    path = write(tmp_path / "x.json", coco("a.jpg", segmentation=mask))
    assert read_objects(path) == {"a.jpg": CAT}
    assert check(path)["ignored_shapes"] == {"mask of another size than its image": 1}


@pytest.mark.parametrize(
    ("train", "content"),
    [
        ("/kaggle/input/x/train/images", ""),  # folders of another machine
        ("C:\\data\\x\\train\\images", ""),
        ("train.txt", "/home/me/x/train/images/a.jpg\n"),  # a list of another machine
        ("train.txt", "D:\\x\\train\\images\\a.jpg\r\n"),
    ],
)
def test_yolo_paths_of_another_machine(tmp_path: Path, train: str, content: str) -> None:
    image(tmp_path / "train" / "images" / "a.jpg", (100, 100))
    write(tmp_path / "train" / "labels" / "a.txt", "0 .2 .2 .2 .2\n")
    write(tmp_path / "data.yaml", f"train: {train}\nnames: [cat]\n")
    if content:
        write(tmp_path / "train.txt", content)
    [objects] = read_objects(tmp_path).values()
    assert objects == CAT


def test_a_dataset_without_rows_is_an_error_of_check(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    path = write(tmp_path / "labels.csv", "a.jpg,10,10,30,30,cat\n")  # as keras-retinanet has it, without a header
    with pytest.raises(DatasetError, match=r"labels\.csv contains no rows") as caught:
        check(path)
    assert "first line" in caught.value.hint


XML = (
    "<annotation><object><name>cat</name><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    "</object></annotation>"
)
LABELME = {
    "shapes": [{"label": "cat", "shape_type": "rectangle", "points": [[10, 10], [30, 30]]}],
    "imagePath": "..\\images\\a.jpg",
}
YOLO = {"labels/a.txt": "0 .2 .2 .2 .2\n"}


@pytest.mark.parametrize(
    ("image_name", "files"),
    [
        ("images/a.jpg", {"annotations/a.xml": XML}),  # VOC in the folders of Kaggle
        ("JPEGImages/in/a.jpg", {"Annotations/in/a.xml": XML}),
        ("images/a.jpg", {"annotations/a.json": LABELME}),
        ("images/a.jpg", {"annotations/other.json": LABELME}),
        ("a.jpg", {"a.json": LABELME, "_classes.json": ["cat"]}),
        ("data/a.jpg", {"labels.json": coco("a.jpg")}),  # FiftyOne
        ("images/a.jpg", {"train.json": coco("a.jpg"), "val.json": coco("b.jpg")}),
        ("images/train/a.jpg", {"instances_train.json": coco("a.jpg")}),
        ("images/a.jpg", {"labelTxt/a.txt": "gsd:1\n10 10 30 10 30 30 10 30 cat 0\n"}),  # DOTA
        ("train/images/a.jpg", {"train/labelTxt/a.txt": "10 10 30 10 30 30 10 30 cat 0\n"}),
        ("images/a.jpg", {**YOLO, "my.yaml": "train: images\nnames: [cat]\n"}),
        ("images/a.jpg", {"x.csv": "filename;width;height;class;xmin;ymin;xmax;ymax\na.jpg;100;100;cat;10;10;30;30\n"}),
    ],
)
def test_folders_of_other_layouts(tmp_path: Path, image_name: str, files: dict[str, Any]) -> None:
    image(tmp_path / image_name, (100, 100))
    for name, content in files.items():
        write(tmp_path / name, content)
    [(name, objects)] = read_objects(tmp_path).items()
    assert (Path(name).name, objects) == ("a.jpg", CAT)
    assert check(tmp_path)["ignored_shapes"] == {}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.json", LABELME, "has the annotations of one image"),
        ("a.xml", XML, "has the annotations of one image"),
        (
            "via.json",
            {"project": {}, "attribute": {}, "file": {"1": {"fname": "a.jpg"}}, "metadata": {}, "view": {}},
            "VIA 3",
        ),
        ("x.json", '{"images": [],\n"annotations": [,]}', r"is not JSON: Expecting value \(line 2, column 17\)"),
        ("x.json", {"a.jpg": "a cat"}, "maps no image to a row"),
        ("x.json", {"info": {}, "categories": {}, "items": [{"annotations": []}]}, "is the JSON of Datumaro"),
    ],
)
def test_files_that_are_refused_by_name(tmp_path: Path, name: str, content: Any, what: str) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    with pytest.raises(DatasetError, match=what) as caught:
        resolve_dataset(write(tmp_path / name, content), DatasetOptions("od"))
    assert caught.value.hint


def test_captions_beside_images_are_read_before_a_stray_coco_file(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    write(tmp_path / "a.txt", "a cat")
    write(tmp_path / "labels.json", coco("a.jpg"))
    [sample] = resolve_dataset(tmp_path, DatasetOptions("caption")).samples
    assert sample.target == "a cat"


def test_a_row_of_an_image_alone_is_an_image_without_objects(tmp_path: Path) -> None:
    for number, name in enumerate(("a.jpg", "b.jpg")):
        image(tmp_path / name, (100, 100 + number))
    path = write(tmp_path / "x.csv", "image,xmin,ymin,xmax,ymax,label\na.jpg,10,10,30,30,cat\nb.jpg,,,,,\n")
    assert read_objects(path) == {"a.jpg": CAT, "b.jpg": []}


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_fields_that_other_marks_than_commas_separate(tmp_path: Path, mark: str) -> None:
    image(tmp_path / "a.jpg")
    path = write(tmp_path / "x.csv", f"file_name{mark} text\na.jpg{mark} a cat, red\n")
    [sample] = resolve_dataset(path, DatasetOptions("caption")).samples
    assert sample.target == "a cat, red"


def test_the_place_of_what_is_not_read_is_that_of_its_image(tmp_path: Path) -> None:
    for name, kind, points in (("a", "rectangle", [[10, 10], [30, 30]]), ("b", "point", [[1, 1]])):
        image(tmp_path / f"{name}.jpg", (100, 100))
        shape = {"label": "cat", "shape_type": kind, "points": points}
        write(tmp_path / f"{name}.json", {"shapes": [shape], "imagePath": f"{name}.jpg"})
    summary = resolve_dataset(tmp_path, DatasetOptions("od")).summary()
    assert f"; not read: 1 point, 1 image of which no object is read, the first in {tmp_path}/b.json" in summary


def test_captions_of_objects_are_no_captions_of_the_image(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    path = write(tmp_path / "x.json", coco("a.jpg", caption="a cat that sleeps"))
    assert read_objects(path) == {"a.jpg": CAT}
    assert check(path)["ignored_shapes"] == {"caption of an object": 1}


def test_attributes_and_descriptions_are_counted(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    box = '<box label="cat" xtl="10" ytl="10" xbr="30" ybr="30"><attribute name="text">EXIT</attribute></box>'
    xml = f'<annotations><version>1.1</version><image name="a.jpg">{box}</image></annotations>'
    path = write(tmp_path / "x.xml", xml)
    assert read_objects(path) == {"a.jpg": CAT}
    assert check(path)["ignored_shapes"] == {"attribute": 1}
    path.unlink()
    write(tmp_path / "a.json", {**LABELME, "shapes": [{**LABELME["shapes"][0], "description": "EXIT"}]})
    assert read_objects(tmp_path) == {"a.jpg": CAT}
    assert check(tmp_path)["ignored_shapes"] == {"description": 1}
