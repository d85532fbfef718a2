"""Files as annotation programs write them, read as annotations in pixels."""

import base64
import io
import json
import zlib
from pathlib import Path

import pytest
from PIL import Image

from florence2.cli.program import main
from florence2.config import DataSettings
from florence2.data.folders.listing import walk
from florence2.data.formats.annotations import AnnotatedImage
from florence2.data.formats.annotators import createml, cvat, label_studio, open_images, supervisely, via, vott
from florence2.data.formats.annotators.values import finite_numbers, peek_json, rotated_box
from florence2.data.formats.text_detection import funsd, icdar, paddleocr
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.errors import UserError
from tests.strategies import locs

BOX = ("cat", [10, 10, 30, 30], 0)
POLYGON = ("cat", [10, 10, 30, 30], 1)


def summary(image: AnnotatedImage) -> list[tuple[str, list[float], int]]:
    return [(each.label, [round(side, 6) for side in each.box], len(each.polygons)) for each in image.annotations]


def only(images) -> AnnotatedImage:
    [(where, image)] = images
    assert where
    return image


CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<image id="0" name="a.jpg" width="100" height="100">{}</image></annotations>"""


@pytest.mark.parametrize(
    ("shape", "expected", "ignored"),
    [
        ('<box label="cat" xtl="10" ytl="10" xbr="30" ybr="30"/>', [BOX], ()),  # a box
        (
            '<box label="cat" xtl="10" ytl="10" xbr="30" ybr="30" rotation="90"/>',
            [POLYGON],
            (),
        ),  # rotated by 90 degrees
        ('<polygon label="cat" points="10,10;30,10;30,30"/>', [POLYGON], ()),  # an outline
        ('<ellipse label="cat" cx="20" cy="20" rx="10" ry="10"/>', [BOX], ()),  # an ellipse
        ('<mask label="cat" rle="1" left="10" top="10" width="20" height="20"/>', [BOX], ()),  # a mask
        ('<points label="cat" points="1,1"/><polyline label="cat" points="1,1;2,2"/>', [], ("points", "polyline")),
        ("", [], ()),  # an image without objects
    ],
)
def test_cvat(tmp_path: Path, shape: str, expected: list, ignored: tuple) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text(CVAT.format(shape))
    assert cvat.is_cvat(path)
    image = only(cvat.read_cvat(path))
    assert (image.file_name, image.size, summary(image)) == ("a.jpg", (100, 100), expected)
    assert tuple(image.ignored_shapes) == ignored


def test_cvat_for_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotations><version>1.1</version><track id='0'/></annotations>")
    with pytest.raises(UserError, match="format for videos"):
        list(cvat.read_cvat(tmp_path / "a.xml"))


def test_voc_is_not_cvat(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotation><filename>a.jpg</filename></annotation>")
    assert not cvat.is_cvat(tmp_path / "a.xml")


def rectangle(**more: object) -> dict:
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["cat"], **more}
    return {"type": "rectanglelabels", "original_width": 100, "original_height": 100, "value": value}


def polygon() -> dict:
    value = {"points": [[10, 10], [30, 10], [30, 30]], "polygonlabels": ["cat"]}
    return {"type": "polygonlabels", "original_width": 100, "original_height": 100, "value": value}


@pytest.mark.parametrize(
    ("result", "expected", "ignored"),
    [
        ([rectangle()], [BOX], ()),
        ([polygon()], [POLYGON], ()),
        ([{"type": "choices", "value": {"choices": ["red"]}}], [], ("choices",)),  # a class of the whole image
        ([rectangle(x=30, rotation=90)], [POLYGON], ()),  # rotated around its top left corner
    ],
)
def test_label_studio(tmp_path: Path, result: list, expected: list, ignored: tuple) -> None:
    task = {"id": 1, "data": {"image": "/data/upload/1/ab12cd34-a.jpg"}, "annotations": [{"result": result}]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps([task]))
    assert label_studio.is_label_studio(peek_json(path))
    image = only(label_studio.read_label_studio(path))
    assert (image.file_name, summary(image), tuple(image.ignored_shapes)) == ("a.jpg", expected, ignored)


def test_label_studio_counts_the_annotations_that_are_not_read(tmp_path: Path) -> None:
    results = [{"result": [rectangle()]}, {"result": [polygon()]}, {"result": [], "was_cancelled": True}]
    task = {"id": 1, "data": {"image": "a.jpg"}, "annotations": results}
    (tmp_path / "x.json").write_text(json.dumps([task]))
    image = only(label_studio.read_label_studio(tmp_path / "x.json"))
    assert summary(image) == [BOX]
    assert tuple(image.ignored_shapes) == ("further annotation of a task", "cancelled annotation")


def test_label_studio_min(tmp_path: Path) -> None:
    shape = rectangle()["value"] | {"original_width": 100, "original_height": 100}
    row = {"id": 1, "annotation_id": 2, "image": "/data/local-files/?d=photos/a.jpg", "label": [shape]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps([row]))
    assert label_studio.is_label_studio(peek_json(path))
    image = only(label_studio.read_label_studio(path))
    assert (image.file_name, summary(image)) == ("photos/a.jpg", [BOX])


def test_label_studio_text_is_the_label(tmp_path: Path) -> None:
    shape = rectangle(rectanglelabels=["Text"]) | {"id": "r1"}
    text = {"id": "r1", "type": "textarea", "value": {"text": ["EXIT"]}}
    task = {"id": 1, "data": {"ocr": "http://host/photos/a.jpg"}, "annotations": [{"result": [shape, text]}]}
    (tmp_path / "x.json").write_text(json.dumps([task]))
    image = only(label_studio.read_label_studio(tmp_path / "x.json"))
    assert (image.file_name, summary(image)) == ("a.jpg", [("EXIT", BOX[1], 0)])


def test_createml(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    box = {"label": "cat", "coordinates": {"x": 20, "y": 20, "width": 20, "height": 20}}
    path.write_text(json.dumps([{"image": "a.jpg", "annotations": [box]}, {"image": "b.jpg", "annotations": []}]))
    assert createml.is_createml(peek_json(path))
    images = [image for _, image in createml.read_createml(path)]
    assert [(image.file_name, summary(image)) for image in images] == [("a.jpg", [BOX]), ("b.jpg", [])]


def test_vott(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    corners = [{"x": 10, "y": 10}, {"x": 30, "y": 10}, {"x": 30, "y": 30}]
    sides = {"left": 10, "top": 10, "width": 20, "height": 20}
    regions = [
        {"id": "1", "type": "RECTANGLE", "tags": ["cat"], "boundingBox": sides, "points": corners},
        {"id": "2", "type": "POLYGON", "tags": ["cat"], "boundingBox": sides, "points": corners},
    ]
    asset = {"asset": {"name": "a.jpg", "size": {"width": 100, "height": 100}}, "regions": regions}
    path.write_text(json.dumps({"name": "p", "assets": {"1": asset}}))
    assert vott.is_vott(peek_json(path))
    image = only(vott.read_vott(path))
    assert (image.file_name, image.size, summary(image)) == ("a.jpg", (100, 100), [BOX, POLYGON])


def test_vott_csv_joins_the_rows_of_an_image(tmp_path: Path) -> None:
    path = tmp_path / "x-export.csv"
    rows = ['"image","xmin","ymin","xmax","ymax","label"', '"a.jpg",10,10,30,30,"cat"', '"b.jpg",1,2,3,4,"dog"']
    path.write_text("\n".join([*rows, '"a.jpg",10,10,30,30,"cat"']))
    assert vott.is_vott_csv(path)
    images = [image for _, image in vott.read_vott_csv(path)]
    assert [(image.file_name, len(image.annotations)) for image in images] == [("a.jpg", 2), ("b.jpg", 1)]


VIA_REGIONS = [
    {
        "shape_attributes": {"name": "rect", "x": 10, "y": 10, "width": 20, "height": 20},
        "region_attributes": {"class": "cat"},
    },
    {
        "shape_attributes": {"name": "polygon", "all_points_x": [10, 30, 30], "all_points_y": [10, 10, 30]},
        "region_attributes": {"anything": "cat"},
    },
    {
        "shape_attributes": {"name": "circle", "cx": 20, "cy": 20, "r": 10},
        "region_attributes": {"label": {"cat": True}},
    },
    {"shape_attributes": {"name": "point", "cx": 20, "cy": 20}, "region_attributes": {"label": "cat"}},
]


@pytest.mark.parametrize("wrap", [lambda images: images, lambda images: {"_via_img_metadata": images}])
@pytest.mark.parametrize("regions", [VIA_REGIONS, {str(n): each for n, each in enumerate(VIA_REGIONS)}])
def test_via(tmp_path: Path, wrap, regions) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(wrap({"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": regions}})))
    assert via.is_via(peek_json(path))
    image = only(via.read_via(path))
    assert (image.file_name, summary(image)) == ("a.jpg", [BOX, POLYGON, BOX])
    assert tuple(image.ignored_shapes) == ("point",)


def test_via_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    shape, attributes = (json.dumps(VIA_REGIONS[0][key]).replace('"', '""') for key in sorted(VIA_REGIONS[0])[::-1])
    header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    empty = 'b.jpg,1,"{}",0,0,"{}","{}"'
    path.write_text(f'{header}\na.jpg,1,"{{}}",1,0,"{shape}","{attributes}"\n{empty}\n')
    assert via.is_via_csv(path)
    images = [image for _, image in via.read_via_csv(path)]
    assert [(image.file_name, summary(image)) for image in images] == [("a.jpg", [BOX]), ("b.jpg", [])]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('10,10,30,10,30,30,10,30,"EXIT"', ("EXIT", [10, 10, 30, 30], 1)),  # eight numbers, quoted text
        ("10,10,30,10,30,30,10,30,one, two", ("one, two", [10, 10, 30, 30], 1)),  # a comma in the text
        ('10,10,30,10,30,30,10,30,8" pipe', ('8" pipe', [10, 10, 30, 30], 1)),  # a quote in the text
        ('10 10 30 30 "EXIT"', ("EXIT", [10, 10, 30, 30], 0)),  # four numbers, spaces
        ("10,10,30,30,EXIT", ("EXIT", [10, 10, 30, 30], 0)),  # four numbers, commas
    ],
)
def test_icdar(tmp_path: Path, line: str, expected: tuple) -> None:
    (tmp_path / "img_1.png").write_bytes(b"")
    (tmp_path / "gt_img_1.txt").write_text(line + "\n")
    listing = next(walk(tmp_path, recursive=False))
    assert icdar.icdar_files(listing) == ["gt_img_1.txt"]
    image = only(icdar.read_icdar(listing, tmp_path))
    assert (image.file_name, summary(image)) == ("img_1.png", [expected])


@pytest.mark.parametrize("text", [",###", "", ","])
def test_illegible_text_is_counted(tmp_path: Path, text: str) -> None:
    (tmp_path / "img_1.png").write_bytes(b"")
    (tmp_path / "gt_img_1.txt").write_text(f"10,10,30,10,30,30,10,30{text}\n")
    image = only(icdar.read_icdar(next(walk(tmp_path, recursive=False)), tmp_path))
    assert (list(image.annotations), tuple(image.ignored_shapes)) == ([], ("illegible text",))


def test_captions_are_not_icdar(tmp_path: Path) -> None:
    (tmp_path / "gt_a.txt").write_text("10 red cats on a mat\n")
    assert icdar.icdar_files(next(walk(tmp_path, recursive=False))) == []


def test_paddleocr(tmp_path: Path) -> None:
    path = tmp_path / "Label.txt"
    quad = [[10, 10], [30, 10], [30, 30], [10, 30]]
    rows = [{"transcription": "EXIT", "points": quad, "difficult": False}, {"transcription": "###", "points": quad}]
    path.write_text(f"train/a.jpg\t{json.dumps(rows)}\n")
    assert paddleocr.is_paddleocr(path)
    image = only(paddleocr.read_paddleocr(path))
    assert (image.file_name, summary(image)) == ("train/a.jpg", [("EXIT", [10, 10, 30, 30], 1)])
    assert tuple(image.ignored_shapes) == ("illegible text",)


def test_funsd(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"")
    page = {"form": [{"box": [10, 10, 30, 30], "text": "Date:", "label": "question", "words": [], "id": 0}]}
    (tmp_path / "annotations" / "1.json").write_text(json.dumps(page))
    assert funsd.is_funsd(page)
    image = only(funsd.read_funsd(tmp_path / "annotations", tmp_path / "images"))
    assert (image.file_name, summary(image)) == ("1.png", [("Date:", [10, 10, 30, 30], 0)])


def test_supervisely(tmp_path: Path) -> None:
    for name in ("ann", "img"):
        (tmp_path / "ds0" / name).mkdir(parents=True)
    png = io.BytesIO()
    Image.new("1", (20, 20), 1).save(png, "png")
    data = base64.b64encode(zlib.compress(png.getvalue())).decode()
    corners = {"exterior": [[10, 10], [30, 10], [30, 30]], "interior": []}
    objects = [
        {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": [[10, 10], [30, 30]]}},
        {"classTitle": "cat", "geometryType": "polygon", "points": corners},
        {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [10, 10]}},
        {"classTitle": "cat", "geometryType": "point", "points": {"exterior": [[1, 1]]}},
    ]
    page = {"size": {"width": 100, "height": 100}, "objects": objects}
    (tmp_path / "ds0" / "ann" / "a.jpg.json").write_text(json.dumps(page))
    image = only(supervisely.read_supervisely(tmp_path))
    assert (image.file_name, image.size, summary(image)) == ("ds0/img/a.jpg", (100, 100), [BOX, POLYGON, BOX])
    assert tuple(image.ignored_shapes) == ("point",)


def test_open_images(tmp_path: Path) -> None:
    Image.new("RGB", (100, 200)).save(tmp_path / "a1.jpg")
    rows = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf", "a1,x,/m/01yrx,1,.1,.3,.05,.15,0"]
    (tmp_path / "boxes.csv").write_text("\n".join([*rows, "a1,x,/m/01yrx,1,0,1,0,1,1", "gone,x,/m/01yrx,1,0,1,0,1,0"]))
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/01yrx,cat\n")
    assert open_images.is_open_images(tmp_path / "boxes.csv")
    images = [image for _, image in open_images.read_open_images(tmp_path / "boxes.csv", tmp_path)]
    assert [image.file_name for image in images] == ["a1.jpg", "gone.jpg"]
    assert (summary(images[0]), tuple(images[0].ignored_shapes)) == ([BOX], ("group box",))
    dataset = resolve_dataset(tmp_path / "boxes.csv", DatasetOptions("od", on_missing="skip"))
    assert f"skipped: 1 that do not exist, the first is {tmp_path}/gone.jpg" in dataset.summary()


@pytest.mark.parametrize("values", [["nan"], ["inf"], ["x"], [None], [float("nan")]])
def test_coordinates_that_are_not_numbers_are_refused(values: list) -> None:
    with pytest.raises(UserError, match="box 1 has coordinates that are not numbers"):
        finite_numbers(values, "box 1")


def test_rotation_by_180_degrees_swaps_the_corners() -> None:
    assert rotated_box([10, 10, 30, 20], 180, (20, 15)) == pytest.approx([30, 20, 10, 20, 10, 10, 30, 10])


def cvat_folder(folder: Path, shapes: str) -> Path:
    (folder / "images").mkdir()
    Image.new("RGB", (100, 100)).save(folder / "images" / "a.jpg")
    (folder / "annotations.xml").write_text(CVAT.format(shapes))
    return folder


def test_a_folder_of_an_annotation_program_is_a_dataset(tmp_path: Path) -> None:
    shapes = '<box label="cat" xtl="10" ytl="10" xbr="30" ybr="30"/><points label="cat" points="1,1"/>'
    dataset = resolve_dataset(cvat_folder(tmp_path, shapes), DatasetOptions("od"))
    [sample] = dataset.samples
    assert (sample.id, sample.target) == ("a.jpg", "cat<loc_100><loc_100><loc_300><loc_300>")
    assert dataset.summary().endswith(f"not read: 1 points, the first in {tmp_path / 'annotations.xml'} image 0")


def test_text_lines_are_ocr_with_region_by_default(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "img_1.png")
    (tmp_path / "gt_img_1.txt").write_text("10,10,30,10,30,30,10,30,EXIT\n")
    [sample] = resolve_dataset(tmp_path, DatasetOptions(DataSettings.task)).samples
    assert (sample.task, sample.target) == ("<OCR_WITH_REGION>", f"EXIT{locs(100, 100, 300, 100, 300, 300, 100, 300)}")


def test_the_split_of_a_file_name_is_used(tmp_path: Path) -> None:
    for name in ("train", "test"):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{name}.jpg")
        rows = f'"image","xmin","ymin","xmax","ymax","label"\n"{name}.jpg",10,10,30,30,"cat"\n'
        (tmp_path / f"{name}-export.csv").write_text(rows)
    assert [sample.id for sample in resolve_dataset(tmp_path, DatasetOptions("od")).samples] == ["train.jpg"]
    assert [sample.id for sample in resolve_dataset(f"{tmp_path}:test", DatasetOptions("od")).samples] == ["test.jpg"]


def test_data_check_counts_shapes_that_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cvat_folder(tmp_path, '<box label="cat" xtl="10" ytl="10" xbr="30" ybr="30"/><points points="1,1"/>')
    assert main(["data", "check", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ignored_shapes"] == {"points": 1}
