"""Files as people bring them: converted to the right rows, or refused with the reason; each row names its case."""

import json
import re
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from florence2.cli.program import main
from tests.data.images import image

Files = dict[str, Any]  # the content of each file; None is an image of 100 x 100
A = {"a.jpg": None}
IN_IMAGES = {"images/a.jpg": None}
BOX = {"task": "<OD>", "answer": {"bboxes": [[10, 10, 30, 30]], "labels": ["cat"]}}
YOLO_BOX = {"task": "<OD>", "answer": {"bboxes": [[40, 40, 60, 60]], "labels": ["cat"]}}
LINE = "0 .5 .5 .2 .2"
NFD = unicodedata.normalize("NFD", "café")
XML_BOX = "<bndbox><xmin>10</xmin><ymin>10</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"


def coco(name: str = "_annotations.coco.json", image_id: Any = 1, **changes: Any) -> Files:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], **changes}
    images = [{"id": image_id, "file_name": "a.jpg", "width": 100, "height": 100}]
    return {name: {"images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}}


def two_names() -> Files:
    (name, content), *_ = coco().items()
    return {name: {**content, "categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}}


def voc(label: str, encoding: str, file_name: str = "a.jpg") -> bytes:
    body = f"<annotation><filename>{file_name}</filename><object><name>{label}</name>{XML_BOX}</object></annotation>"
    return f'<?xml version="1.0" encoding="{encoding}"?>{body}'.encode(encoding)


def labelled(label: str) -> dict[str, Any]:
    return {"task": "<OD>", "answer": {**BOX["answer"], "labels": [label]}}


def labelme(shape_type: str) -> dict[str, Any]:
    points = [[10, 10], [30, 10], [30, 30], [10, 30]]
    shape = {"label": "cat", "points": points[:: 2 if shape_type == "rectangle" else 1], "shape_type": shape_type}
    return {"version": "5", "shapes": [shape], "imagePath": "a.jpg", "imageHeight": 100, "imageWidth": 100}


def caption_row(text: str, task: str = "<MORE_DETAILED_CAPTION>") -> dict[str, Any]:
    return {"task": task, "text": text}


CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
]
LLAVA = [{"from": "human", "value": "<image>\nDescribe"}, {"from": "gpt", "value": "a cat"}]
CVAT = '<annotations><image name="a.jpg"><box label="cat" xtl="10" ytl="10" xbr="30" ybr="30"/></image></annotations>'
RECTANGLE = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["cat"]}
RESULT = {"value": RECTANGLE, "original_width": 100, "original_height": 100, "type": "rectanglelabels"}
STUDIO = [{"id": 1, "data": {"image": "/data/upload/1/ab12-a.jpg"}, "annotations": [{"result": [RESULT]}]}]
OUTLINE = [[10, 10, 30, 10, 30, 30]]


@pytest.mark.parametrize(
    ("files", "dataset", "expected"),
    [
        ({**A, "x.jsonl": {"images": ["a.jpg"], "messages": CHAT}}, "x.jsonl", caption_row("a cat", "Describe")),  # A3
        (
            {
                **IN_IMAGES,
                "labels/a.txt": f"{LINE} .45 .45 .9 .1",
                "d.yaml": "train: images\nkpt_shape: [2, 2]\nnames: [cat]",
            },
            "d.yaml",
            YOLO_BOX,
        ),  # A5
        (
            {
                **IN_IMAGES,
                "labels/a.txt": f"{LINE} .45 .45 2",
                "d.yaml": "train: images\nkpt_shape: [1, 3]\nnames: [cat]",
            },
            "d.yaml",
            YOLO_BOX,
        ),  # A5, one keypoint
        ({**A, **coco(image_id="1")}, ".", BOX),  # A6
        ({**A, **coco(image_id=2)}, ".", "no annotation of .* is about one of its images"),  # A6, ids that do not meet
        ({**A, **coco(iscrowd="0")}, ".", BOX),  # A8
        ({**A, **two_names()}, ".", "two names for the category id 1: `cat` and `dog`"),  # A8, two names of one id
        ({**A, **coco(bbox=[0, 0, 0, 0], segmentation=OUTLINE)}, ".", BOX),  # A9
        ({**A, "a.txt": LINE, "classes.txt": "cat"}, ".", YOLO_BOX),  # A10
        ({**A, "a.txt": LINE}, ".", "has labels of YOLO, not a caption\nhint: list the names"),  # A10, no names
        (
            {"Images/a.jpg": None, "Labels/a.txt": LINE, "d.yaml": "train: Images\nnames: [cat]"},
            "d.yaml",
            YOLO_BOX,
        ),  # A11
        (
            {**IN_IMAGES, "lables/a.txt": LINE, "d.yaml": "train: images\nnames: [cat]"},
            "d.yaml",
            "none of the 1 images of d.yaml has a label file, the first would be labels/a.txt",
        ),  # A11, a misspelt folder
        ({**A, "metadata.jsonl": '{"file_name": "a.jpg", "text": NaN}'}, ".", "none of 1 rows"),  # A13
        (
            {**A, "m.json": {"a": {"caption": "a cat", "tags": "red, sofa"}}},
            "m.json",
            caption_row("a cat,red, sofa"),
        ),  # A14
        ({**A, "a.xml": voc("猫", "gb2312")}, ".", labelled("猫")),  # A16
        ({**A, "a.xml": voc("café", "iso-8859-1")}, ".", labelled("café")),  # A16, Latin-1
        ({**A, "a.xml": voc("猫", "utf-16")}, ".", labelled("猫")),  # A16, UTF-16
        ({**A, "b.jpg": None, "a.xml": voc("cat", "utf-8", "b.jpg")}, ".", BOX),  # A17
        ({**A, "a.json": labelme("rotation")}, ".", BOX),  # A18
        ({**A, "a.json": labelme("oriented_rectangle")}, ".", BOX),  # A18
        ({**A, "b.jpg": None, "a.txt": "a cat", "b.txt": b"it\x92s"}, ".", caption_row("a cat")),  # B3
        (
            {**IN_IMAGES, "labels/a.txt": LINE, "d.yaml": "train: images\nnames: {cat: 0}"},
            "d.yaml",
            "`names` with `cat` where the number of a class belongs\nhint: write the number first",
        ),  # B5
        (
            {**IN_IMAGES, "labels/a.txt": LINE, "d.yaml": "train: images\nnames: [no, yes]"},
            "d.yaml",
            {"task": "<OD>", "answer": {**YOLO_BOX["answer"], "labels": ["no"]}},
        ),  # B5, words that YAML reads as truth
        (
            {**IN_IMAGES, "labels/a.txt": "1 .5 .5 .2 .2", "d.yaml": "train: images\nnames:\n  0: cat\n  1:"},
            "d.yaml",
            "none of 1 rows",
        ),  # B5, a class without a name
        ({**IN_IMAGES, "labels/a.txt": LINE, "d.yaml": "train: images\nnc: 1"}, "d.yaml", "no `names` of cl"),  # B5
        (
            {**IN_IMAGES, "labels/a.txt": LINE, "classes.txt": "cat", "notes.json": {"categories": [], "info": {}}},
            ".",
            YOLO_BOX,
        ),  # C1
        ({"images/default/a.jpg": None, **coco("annotations/instances_default.json")}, ".", BOX),  # C2
        ({"images/Train/Data/a.jpg": None, **coco("annotations/instances_Train.json")}, ".", BOX),  # C2, capitals
        ({**IN_IMAGES, "annotations.xml": CVAT}, ".", BOX),  # C4
        ({**A, "x.json": STUDIO}, "x.json", BOX),  # C5
        (
            {
                **A,
                "metadata.jsonl": {"file_name": "a.jpg", "objects": {"bbox": [[10, 10, 20, 20]], "category": ["cat"]}},
            },
            ".",
            BOX,
        ),  # C6
        (
            {**A, "metadata.jsonl": {"file_name": "a.jpg", "objects": {"bbox": [[10, 10, 20, 20]], "categories": [0]}}},
            ".",
            "none of 1 rows",
        ),  # C6, numbers without names
        (
            {**A, "x.json": [{"image": "a.jpg", "conversations": LLAVA}]},
            "x.json",
            caption_row("a cat", "Describe"),
        ),  # C7
        ({**A, "x.json": {"info": None, **coco()["_annotations.coco.json"]}}, "x.json", BOX),  # C10
        ({**A, "x.json": {"name": "x", **coco()["_annotations.coco.json"]}}, "x.json", BOX),  # C10, any other key
        ({**A, **coco("x.json", segmentation=OUTLINE[0])}, "x.json", BOX),  # C12
        ({f"{NFD}.jpg": None, "metadata.jsonl": {"file_name": "café.jpg", "text": "x"}}, ".", caption_row("x")),  # C17
        ({f"{NFD}.jpg": None, "café.txt": "x"}, ".", caption_row("x")),  # C17, a file beside the image
        (
            {"train/a.jpg": None, "train/metadata.jsonl": {"file_name": "a.jpg", "text": "x"}},
            ".",
            caption_row("x"),
        ),  # C19
        (
            {**IN_IMAGES, "labels/a.txt": f"{LINE}\n{LINE}", "d.yaml": "train: images\nnames: [cat]"},
            "d.yaml",
            {"task": "<OD>", "answer": {"bboxes": [[40, 40, 60, 60]] * 2, "labels": ["cat"] * 2}},
        ),  # C22
    ],
)
def test_files_become_rows_or_are_refused(
    files: Files,
    dataset: str,
    expected: dict[str, Any] | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        write(Path(name), content)
    code = main(["data", "convert", dataset, "out", "--to", "jsonl"])
    output = capsys.readouterr()
    if isinstance(expected, str):
        assert code == 2
        assert re.search(expected, output.err)
        assert output.err.count("\n") == 2
        return
    assert code == 0, output.err
    [row] = [json.loads(line) for line in Path("out/metadata.jsonl").read_text().splitlines()]
    assert {key: value for key, value in row.items() if key != "file_name"} == expected
    assert main(["data", "check", dataset]) in (0, 1)
    assert " sample" in capsys.readouterr().out


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        image(path, (100, 100))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_files_of_a_record_may_be_anywhere_in_a_tar(tmp_path: Path) -> None:  # C13
    for number, text in ((1, "one"), (2, "two")):
        image(tmp_path / f"{number}.jpg").with_suffix(".txt").write_text(text)
    with tarfile.open(tmp_path / "u.tar", "w") as tar:
        for name in ("1.jpg", "2.jpg", "1.txt", "2.txt"):
            tar.add(tmp_path / name, name)
    assert main(["data", "convert", str(tmp_path / "u.tar"), str(tmp_path / "out"), "--to", "folder"]) == 0
    assert [(tmp_path / "out" / f"{number}.txt").read_text().strip() for number in (1, 2)] == ["one", "two"]


def test_boxes_over_the_edge_are_clipped_in_yolo(tmp_path: Path) -> None:  # D1
    image(tmp_path / "a.jpg", (640, 480))
    (content,) = coco(bbox=[-3, 10, 653, 20]).values()
    content["images"][0] |= {"width": 640, "height": 480}
    content["annotations"].append(
        {**content["annotations"][0], "id": 2, "bbox": [600, 10, 50, 20], "segmentation": [[600, 10, 650, 10, 650, 30]]}
    )
    write(tmp_path / "x.json", content)
    assert main(["data", "convert", str(tmp_path / "x.json"), str(tmp_path / "y"), "--to", "yolo"]) == 0
    lines = (tmp_path / "y" / "labels" / "a.txt").read_text().splitlines()
    numbers = [float(number) for line in lines for number in line.split()[1:]]
    assert len(lines) == 2
    assert all(0 <= number <= 1 for number in numbers)
    assert numbers[::2][:2] == [0.5, 1]
