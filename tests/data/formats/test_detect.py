"""Annotation files of every format are read as samples with the right boxes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from florence2.data.formats.mask_polygons import mask_to_polygons
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.errors import DatasetError
from tests.data.formats.annotation_files import SIZE, coco, labelme, voc, yolo
from tests.data.images import image
from tests.strategies import locs

DEFAULT = "more_detailed_caption"
BOX = locs(100, 200, 499, 799)  # of the box 20, 20, 99.9, 79.9 in an image of 200 x 100
CORNERS = [20, 20, 99.9, 79.9]


def read_samples(spec, task=DEFAULT, **options):
    found = resolve_dataset(spec, DatasetOptions(task, **options))
    return [(sample.id, sample.task, sample.input, sample.target) for sample in found.samples]


def read_error(spec, task="od", **options):
    with pytest.raises(DatasetError) as caught:
        read_samples(spec, task, **options)
    assert "\n" not in caught.value.what
    return caught.value


def voc_object(name, *sides):
    corners = "".join(
        f"<{key}>{side}</{key}>" for key, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


@pytest.fixture
def cat(tmp_path):
    """Write a COCO file with one cat, whose polygon is a triangle."""
    image(tmp_path / "0.png", SIZE)
    row = {"bbox": [20, 20, 79.9, 59.9], "segmentation": [[20, 20, 99.9, 20, 20, 79.9]]}
    return coco(tmp_path / "_annotations.coco.json", [row])


def test_every_format_reads_the_same_box(tmp_path, cat):
    assert read_samples(cat) == read_samples(tmp_path) == [("0.png", "<OD>", "", "cat" + BOX)]
    path = yolo(tmp_path / "yolo", "0 0.29975 0.4995 0.3995 0.599\n")
    assert read_samples(path) == read_samples(path.parent) == [("0.png", "<OD>", "", "cat" + BOX)]
    path = voc(tmp_path / "voc", voc_object("cat", *CORNERS))
    assert read_samples(path) == [("0.jpg", "<OD>", "", "cat" + BOX)]
    shape = {"label": "cat", "points": [[99.9, 79.9], [20, 20]], "shape_type": "rectangle"}
    assert read_samples(labelme(tmp_path / "labelme", [shape])) == [("0.png", "<OD>", "", "cat" + BOX)]


@pytest.mark.parametrize(
    ("task", "task_input", "target"),
    [
        ("od", "", "cat" + BOX),
        ("dense_region_caption", "", "cat" + BOX),
        ("region_proposal", "", BOX),
        ("caption_to_phrase_grounding", "cat", "cat" + BOX),
        ("open_vocabulary_detection", "cat", "cat" + BOX),
        ("ocr_with_region", "", "cat" + locs(100, 200, 499, 200, 499, 799, 100, 799)),
        ("referring_expression_segmentation", "cat", locs(100, 200, 499, 200, 100, 799)),
        ("region_to_segmentation", BOX, locs(100, 200, 499, 200, 100, 799)),
        ("region_to_category", BOX, "cat"),
        ("region_to_description", BOX, "cat"),
        ("region_to_ocr", BOX, "cat"),
    ],
)
def test_annotations_become_targets_of_every_object_task(cat, task, task_input, target):
    ((_, token, input_text, text),) = read_samples(cat, task)
    assert (token.strip("<>").lower(), input_text, text) == (task, task_input, target)


def test_annotations_are_no_target_of_a_text_task(cat):
    assert read_error(cat, "Is there a cat?").what == "annotated objects are no target of `Is there a cat?`"
    assert read_error(cat, "detailed_caption").hint.startswith("pass one of ocr_with_region, od")


def test_objects_are_in_reading_order_and_crowds_are_skipped(tmp_path):
    image(tmp_path / "0.png", SIZE)
    boxes = [[100, 60, 10, 10], [150, 0, 10, 10], [0, 0, 10, 10]]
    rows = [{"bbox": box, "category_id": 2} for box in boxes] + [{"bbox": [0, 0, 200, 100], "iscrowd": 1}]
    ((*_, text),) = read_samples(coco(tmp_path / "list.json", rows))
    first, second, third = locs(0, 0, 50, 100), locs(750, 0, 800, 100), locs(500, 600, 550, 700)
    assert text == "stop-sign" + first + second + third


def test_coco_captions_and_images_without_objects(tmp_path):
    image(tmp_path / "0.png", SIZE)
    image(tmp_path / "1.png", SIZE)
    captions = coco(tmp_path / "captions.json", [{"caption": "a cat "}, {"caption": "a pet"}])
    assert read_samples(captions, "caption") == [("0.png", "<CAPTION>", "", text) for text in ("a cat", "a pet")]
    empty = coco(tmp_path / "list.json", [{"bbox": [0, 0, 10, 10]}], images=2)
    assert read_samples(empty)[1] == ("1.png", "<OD>", "", "")
    assert len(read_samples(empty, "region_to_category")) == 1  # the second image has no object


def test_coco_image_folders(tmp_path):
    image(tmp_path / "train2017" / "0.png", SIZE)
    path = coco(tmp_path / "annotations" / "instances_train2017.json", [{"bbox": [0, 0, 9, 9]}])
    assert [row[0] for row in read_samples(path)] == [row[0] for row in read_samples(tmp_path)] == ["0.png"]
    image(tmp_path / "here" / "0.png", SIZE)
    found = resolve_dataset(path, DatasetOptions("od", dataset_dir=tmp_path / "here"))
    assert found.samples[0].image == tmp_path / "here" / "0.png"


def test_splits_in_folders(tmp_path):
    for split, side in (("train", 10), ("valid", 20)):
        image(tmp_path / split / "0.png", SIZE)
        coco(tmp_path / split / "_annotations.coco.json", [{"bbox": [0, 0, side, side]}])
    assert read_samples(tmp_path)[0][3] == read_samples(f"{tmp_path}:train")[0][3] == "cat" + locs(0, 0, 50, 100)
    assert read_samples(f"{tmp_path}:val")[0][3] == "cat" + locs(0, 0, 100, 200)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with numpy 2
def test_run_length_masks_become_polygons(tmp_path):
    pytest.importorskip("pycocotools")
    image(tmp_path / "0.png", SIZE)
    mask = np.zeros((100, 200), bool)
    mask[20:80, 20:100] = True
    mask[40:50, 40:50] = False  # a hole, which is filled
    flat = mask.T.ravel()
    turns = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *turns, flat.size]).tolist()
    rle = {"counts": counts, "size": [100, 200]}
    assert [sorted(zip(polygon[::2], polygon[1::2], strict=True)) for polygon in mask_to_polygons(rle, "it")] == [
        [(20, 20), (20, 80), (100, 20), (100, 80)]
    ]
    path = coco(tmp_path / "list.json", [{"bbox": [20, 20, 80, 60], "segmentation": rle}])
    ((*_, text),) = read_samples(path, "referring_expression_segmentation")
    assert sorted(text.split("<")) == sorted(locs(100, 200, 500, 200, 500, 800, 100, 800).split("<"))


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with numpy 2
def test_polygons_cover_the_area_of_the_mask():
    masks = pytest.importorskip("pycocotools.mask")
    image = Image.new("L", (300, 200))
    ImageDraw.Draw(image).ellipse((20, 30, 220, 180), fill=1)
    ImageDraw.Draw(image).rectangle((250, 10, 290, 60), fill=1)
    rle = masks.encode(np.asfortranarray(np.asarray(image)))
    polygons = mask_to_polygons(rle, "it")
    again = masks.decode(masks.merge(masks.frPyObjects([list(polygon) for polygon in polygons], 200, 300)))
    iou = (again & np.asarray(image)).sum() / (again | np.asarray(image)).sum()
    assert len(polygons) == 2
    assert iou > 0.98
    assert sum(map(len, polygons)) < 150  # short enough for a target


def test_yolo_polygons_splits_and_paths_of_exporters(tmp_path):
    path = yolo(tmp_path / "a", "1 0.1 0.2 0.4995 0.2 0.1 0.799\n")
    target = locs(100, 200, 499, 200, 100, 799)
    assert read_samples(path, "referring_expression_segmentation") == [
        ("0.png", "<REFERRING_EXPRESSION_SEGMENTATION>", "stop-sign", target)
    ]
    elsewhere = "path: /elsewhere\ntrain: ../images\nval: images\nnames: {0: cat, 7: dog}\n"
    path = yolo(tmp_path / "b", "7 0.5 0.5 1 1 0.9\n", elsewhere)
    assert read_samples(path) == read_samples(f"{path}:valid") == [("0.png", "<OD>", "", "dog" + locs(0, 0, 999, 999))]
    assert read_error(f"{path.parent}:test").what == f"{path} has no split `test`"


def test_voc_splits_and_xml_beside_images(tmp_path):
    path = voc(tmp_path / "a", voc_object("cat", *CORNERS))
    image(path / "JPEGImages" / "1.jpg", SIZE)
    (path / "Annotations" / "1.xml").write_text("<annotation></annotation>")
    (path / "ImageSets" / "Main").mkdir(parents=True)
    (path / "ImageSets" / "Main" / "val.txt").write_text("1\n")
    assert [row[0] for row in read_samples(path)] == ["0.jpg", "1.jpg"]
    assert read_samples(f"{path}:val") == [("1.jpg", "<OD>", "", "")]
    image(tmp_path / "b" / "x.png", SIZE)
    xml = f"<annotation><filename>old.jpg</filename>{voc_object('cat', *CORNERS)}</annotation>"
    (tmp_path / "b" / "x.xml").write_text(xml)
    assert read_samples(tmp_path / "b") == [("x.png", "<OD>", "", "cat" + BOX)]


def test_labelme_shapes(tmp_path):
    triangle = {"label": "cat", "shape_type": "polygon"}
    shapes = [
        {**triangle, "points": [[20, 20], [99.9, 20], [20, 79.9]], "group_id": 1},
        {**triangle, "points": [[120, 20], [130, 20], [120, 30]], "group_id": 1},
        {"label": "sun", "points": [[50, 50], [50, 60]], "shape_type": "circle"},
        {"label": "nose", "points": [[50, 50]], "shape_type": "point"},
    ]
    path = labelme(tmp_path, shapes)
    assert read_samples(path, "region_to_category") == [
        ("0.png", "<REGION_TO_CATEGORY>", locs(100, 200, 650, 799), "cat"),
        ("0.png", "<REGION_TO_CATEGORY>", locs(200, 400, 300, 600), "sun"),
    ]
    ((*_, text),) = read_samples(path, "referring_expression_segmentation")
    assert text.count("<sep>") == 1


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("0 0.5 0.5\n", "line 1 has 2 numbers after its class"),
        ("cat 0.5 0.5 1 1\n", "line 1 is not a row of numbers"),
        ("0 .5 .5 1 1\n9 .5 .5 1 1\n", "line 2 has the class 9, which is not in `names`"),
    ],
)
def test_malformed_yolo_lines_are_named(tmp_path, lines, what):
    assert read_error(yolo(tmp_path, lines)).what == f"{tmp_path}/labels/0.txt {what}"


def test_malformed_coco_files_are_named(tmp_path):
    image(tmp_path / "0.png", SIZE)
    path = coco(tmp_path / "list.json", [{"bbox": [0, 0, 1]}])
    assert read_error(path).what == f"{path} image 0, annotation 0 has neither a `bbox` of four numbers nor polygons"
    path = coco(tmp_path / "list.json", [{"bbox": [0, 0, 1, 1], "category_id": 5}])
    assert read_error(path).what.endswith("annotation 0 has the category 5, which is not in `categories`")
    path = coco(tmp_path / "list.json", [], images=0)
    assert read_error(path).what == f"{path} is not a COCO annotation file"


def test_absent_images_are_counted(tmp_path, cat):
    coco(cat, [{"bbox": [0, 0, 9, 9]}], images=3)
    assert read_error(cat).what == f"2 of 3 images in {cat} do not exist, the first is {tmp_path}/1.png"
    assert len(read_samples(cat, on_missing="skip")) == 1


def test_metadata_table_goes_before_annotation_files(tmp_path, cat):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}\n')
    assert read_samples(tmp_path, "caption") == [("0.png", "<CAPTION>", "", "a cat")]
