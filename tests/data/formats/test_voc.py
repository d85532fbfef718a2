"""Pascal VOC and LabelMe files as other programs write them: read as objects, or refused with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from florence2.errors import DatasetError
from tests.data.formats.annotation_files import check, read_objects
from tests.data.images import image

BOX = "<bndbox><xmin>10</xmin><ymin>10</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
UNANNOTATED = "image without an annotation file"
CORNERS = [[10, 10], [30, 10], [30, 30], [10, 30]]


def xml(label: str = "cat", filename: str = "a.jpg", more: str = "") -> str:
    return f"<annotation><filename>{filename}</filename><object><name>{label}</name>{BOX}{more}</object></annotation>"


@pytest.mark.parametrize(
    ("declared", "codec", "label"),
    [
        ("gb2312", "gb2312", "猫"),  # several bytes for each character
        ("GBK", "gbk", "貓"),  # its superset
        ("iso-8859-1", "latin-1", "café"),  # one byte for each character
        ("windows-1252", "cp1252", "it’s"),  # a curly quote
        ("utf-16", "utf-16", "猫"),  # a byte order mark
        ("utf-8", "utf-8-sig", "猫"),  # a byte order mark of UTF-8
        ("", "utf-8", "猫"),  # no declaration
    ],
)
def test_voc_xml_is_read_in_its_declared_encoding(tmp_path: Path, declared: str, codec: str, label: str) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    (tmp_path / "a.xml").write_bytes((head + xml(label)).encode(codec))
    assert read_objects(tmp_path) == {"a.jpg": [(label, [10, 10, 30, 30])]}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (xml("café").encode("latin-1"), "not text in the encoding `utf-8`"),  # no declaration
        (b'<?xml version="1.0" encoding="gb2312"?>\xff\xff', "not text in the encoding `gb18030`"),  # a wrong one
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "not text in the encoding `klingon`"),
        (b"<annotation>", "not XML"),  # truncated
    ],
)
def test_voc_xml_in_another_encoding_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(DatasetError, match=what):
        read_objects(tmp_path)


@pytest.mark.parametrize(
    ("images", "filename", "expected", "ignored"),
    [
        (["a.jpg", "b.jpg"], "b.jpg", "a.jpg", {"name of another image": 1, UNANNOTATED: 1}),  # renamed images
        (["a.jpg", "a.png"], "a.png", "a.png", {UNANNOTATED: 1}),  # one stem, two extensions
        (["a.jpg"], "old/x.jpg", "a.jpg", {}),  # a name of another machine
        (["a.jpg"], "", "a.jpg", {}),  # no name
    ],
)
def test_voc_xml_is_about_the_image_with_its_stem(
    tmp_path: Path, images: list[str], filename: str, expected: str, ignored: dict[str, int]
) -> None:
    for name in images:
        image(tmp_path / name, (100, 100))
    (tmp_path / "a.xml").write_text(xml(filename=filename))
    assert list(read_objects(tmp_path)) == [expected]
    assert check(tmp_path)["ignored_shapes"] == ignored


def test_voc_parts_and_a_box_of_nan_are_reported(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    image(tmp_path / "b.jpg", (101, 100))
    (tmp_path / "a.xml").write_text(xml(more=f"<part><name>head</name>{BOX}</part>"))
    (tmp_path / "b.xml").write_text(xml(filename="b.jpg").replace("<xmin>10", "<xmin>nan"))
    report = check(tmp_path)
    assert report["ignored_shapes"] == {"part": 1}
    assert report["issue_counts"] == {"malformed": 1}
    assert report["objects"] == {"cat": 1}


def write_labelme(path: Path, shape_type: str, points: list[Any], **more: Any) -> Path:
    shape = {"label": "cat", "points": points, "shape_type": shape_type, "group_id": None}
    content = {"version": "5", "flags": {}, "shapes": [shape], "imagePath": "a.jpg", "imageData": None, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "imageHeight": 100, "imageWidth": 100}))
    return path


@pytest.mark.parametrize("shape_type", ["rotation", "oriented_rectangle", "quadrilateral", "polygon"])
def test_labelme_shapes_of_four_corners_are_quads(tmp_path: Path, shape_type: str) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    write_labelme(tmp_path / "a.json", shape_type, CORNERS)
    assert read_objects(tmp_path) == {"a.jpg": [("cat", [10, 10, 30, 30])]}
    quad = [side for point in CORNERS for side in point]
    assert read_objects(tmp_path, "ocr_with_region") == {"a.jpg": [("cat", quad)]}


@pytest.mark.parametrize("shape_type", ["point", "line", "linestrip", "points", "cuboid"])
def test_labelme_shapes_that_are_no_objects_are_counted(tmp_path: Path, shape_type: str) -> None:
    image(tmp_path / "a.jpg", (100, 100))
    write_labelme(tmp_path / "a.json", shape_type, CORNERS)
    with pytest.raises(DatasetError, match=f"has no object that can be read, only 1 {shape_type}"):
        check(tmp_path)
    image(tmp_path / "b.jpg", (90, 90))
    write_labelme(tmp_path / "b.json", "polygon", CORNERS)
    assert read_objects(tmp_path) == {"b.jpg": [("cat", [10, 10, 30, 30])]}  # an empty answer about `a` would be untrue
    ignored = check(tmp_path)["ignored_shapes"]
    assert ignored.items() >= {shape_type: 1, "image of which no object is read": 1}.items()


def test_images_of_annotation_files_are_found_in_dataset_dir(tmp_path: Path) -> None:
    image(tmp_path / "pictures" / "a.jpg", (100, 100))
    write_labelme(tmp_path / "labelme" / "a.json", "rectangle", CORNERS[::2])
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text(xml())
    for name in ("labelme", "voc"):
        objects = read_objects(tmp_path / name, dataset_dir=str(tmp_path / "pictures"))
        assert objects == {"a.jpg": [("cat", [10, 10, 30, 30])]}
