"""Every list of objects, given as a dataset, gives samples that say the right boxes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from florence2.data.formats.mask_polygons import mask_to_polygons
from florence2.data.resolve import resolve_dataset
from florence2.errors import UserError
from tests.data.formats.lists import SIZE, coco, labelme, voc, yolo
from tests.data.images import image
from tests.strategies import locs

DEFAULT = "more_detailed_caption"
BOX = locs(100, 200, 499, 799)  # of the box 20, 20, 99.9, 79.9 in a picture of 200 x 100
CORNERS = [20, 20, 99.9, 79.9]


def said(spec, task=DEFAULT, **options):
    found = resolve_dataset(spec, task=task, **options)
    return [(sample.id, sample.task, sample.input, sample.target) for sample in found.samples]


def refused(spec, task="od", **options):
    with pytest.raises(UserError) as caught:
        said(spec, task, **options)
    assert "\n" not in caught.value.what
    return caught.value


def voc_object(name, *sides):
    corners = "".join(
        f"<{key}>{side}</{key}>" for key, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


@pytest.fixture
def cat(tmp_path):
    """Give a COCO list with one cat, outlined by a triangle."""
    image(tmp_path / "0.png", SIZE)
    row = {"bbox": [20, 20, 79.9, 59.9], "segmentation": [[20, 20, 99.9, 20, 20, 79.9]]}
    return coco(tmp_path / "_annotations.coco.json", [row])


def test_the_same_box_from_every_format(tmp_path, cat):
    assert said(cat) == said(tmp_path) == [("0.png", "<OD>", "", "cat" + BOX)]
    made = yolo(tmp_path / "yolo", "0 0.29975 0.4995 0.3995 0.599\n")
    assert said(made) == said(made.parent) == [("0.png", "<OD>", "", "cat" + BOX)]
    made = voc(tmp_path / "voc", voc_object("cat", *CORNERS))
    assert said(made) == [("0.jpg", "<OD>", "", "cat" + BOX)]
    shape = {"label": "cat", "points": [[99.9, 79.9], [20, 20]], "shape_type": "rectangle"}
    assert said(labelme(tmp_path / "labelme", [shape])) == [("0.png", "<OD>", "", "cat" + BOX)]


@pytest.mark.parametrize(
    ("task", "asked", "target"),
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
def test_a_list_answers_every_task_about_objects(cat, task, asked, target):
    ((_, token, given, text),) = said(cat, task)
    assert (token.strip("<>").lower(), given, text) == (task, asked, target)


def test_a_list_of_objects_answers_no_prompt_in_words(cat):
    assert refused(cat, "Is there a cat?").what == "a list of objects does not answer `Is there a cat?`"
    assert refused(cat, "detailed_caption").hint.startswith("choose one of ocr_with_region, od")


def test_objects_come_in_reading_order_and_crowds_are_left_out(tmp_path):
    image(tmp_path / "0.png", SIZE)
    boxes = [[100, 60, 10, 10], [150, 0, 10, 10], [0, 0, 10, 10]]
    rows = [{"bbox": box, "category_id": 2} for box in boxes] + [{"bbox": [0, 0, 200, 100], "iscrowd": 1}]
    ((*_, text),) = said(coco(tmp_path / "list.json", rows))
    first, second, third = locs(0, 0, 50, 100), locs(750, 0, 800, 100), locs(500, 600, 550, 700)
    assert text == "stop-sign" + first + second + third


def test_coco_captions_and_images_without_objects(tmp_path):
    image(tmp_path / "0.png", SIZE)
    image(tmp_path / "1.png", SIZE)
    captions = coco(tmp_path / "captions.json", [{"caption": "a cat "}, {"caption": "a pet"}])
    assert said(captions, "caption") == [("0.png", "<CAPTION>", "", text) for text in ("a cat", "a pet")]
    empty = coco(tmp_path / "list.json", [{"bbox": [0, 0, 10, 10]}], images=2)
    assert said(empty)[1] == ("1.png", "<OD>", "", "")
    assert len(said(empty, "region_to_category")) == 1  # nothing to ask about the second


def test_coco_finds_its_images(tmp_path):
    image(tmp_path / "train2017" / "0.png", SIZE)
    made = coco(tmp_path / "annotations" / "instances_train2017.json", [{"bbox": [0, 0, 9, 9]}])
    assert [row[0] for row in said(made)] == [row[0] for row in said(tmp_path)] == ["0.png"]
    image(tmp_path / "here" / "0.png", SIZE)
    found = resolve_dataset(made, task="od", dataset_dir=tmp_path / "here")
    assert found.samples[0].image == tmp_path / "here" / "0.png"


def test_split_folders(tmp_path):
    for split, side in (("train", 10), ("valid", 20)):
        image(tmp_path / split / "0.png", SIZE)
        coco(tmp_path / split / "_annotations.coco.json", [{"bbox": [0, 0, side, side]}])
    assert said(tmp_path)[0][3] == said(f"{tmp_path}:train")[0][3] == "cat" + locs(0, 0, 50, 100)
    assert said(f"{tmp_path}:val")[0][3] == "cat" + locs(0, 0, 100, 200)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with numpy 2
def test_run_length_masks(tmp_path):
    pytest.importorskip("pycocotools")
    image(tmp_path / "0.png", SIZE)
    mask = np.zeros((100, 200), bool)
    mask[20:80, 20:100] = True
    mask[40:50, 40:50] = False  # a hole, which is filled
    flat = mask.T.ravel()
    turns = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *turns, flat.size]).tolist()
    rle = {"counts": counts, "size": [100, 200]}
    assert [sorted(zip(run[::2], run[1::2], strict=True)) for run in mask_to_polygons(rle, "it")] == [
        [(20, 20), (20, 80), (100, 20), (100, 80)]
    ]
    made = coco(tmp_path / "list.json", [{"bbox": [20, 20, 80, 60], "segmentation": rle}])
    ((*_, text),) = said(made, "referring_expression_segmentation")
    assert sorted(text.split("<")) == sorted(locs(100, 200, 500, 200, 500, 800, 100, 800).split("<"))


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with numpy 2
def test_what_masks_cover_is_kept_by_their_outlines():
    masks = pytest.importorskip("pycocotools.mask")
    image = Image.new("L", (300, 200))
    ImageDraw.Draw(image).ellipse((20, 30, 220, 180), fill=1)
    ImageDraw.Draw(image).rectangle((250, 10, 290, 60), fill=1)
    rle = masks.encode(np.asfortranarray(np.asarray(image)))
    polygons = mask_to_polygons(rle, "it")
    again = masks.decode(masks.merge(masks.frPyObjects([list(run) for run in polygons], 200, 300)))
    both = (again & np.asarray(image)).sum() / (again | np.asarray(image)).sum()
    assert len(polygons) == 2
    assert both > 0.98
    assert sum(map(len, polygons)) < 150  # and they are short enough to say


def test_yolo_outlines_splits_and_paths_of_exporters(tmp_path):
    made = yolo(tmp_path / "a", "1 0.1 0.2 0.4995 0.2 0.1 0.799\n")
    target = locs(100, 200, 499, 200, 100, 799)
    assert said(made, "referring_expression_segmentation") == [
        ("0.png", "<REFERRING_EXPRESSION_SEGMENTATION>", "stop-sign", target)
    ]
    elsewhere = "path: /elsewhere\ntrain: ../images\nval: images\nnames: {0: cat, 7: dog}\n"
    made = yolo(tmp_path / "b", "7 0.5 0.5 1 1 0.9\n", elsewhere)
    assert said(made) == said(f"{made}:valid") == [("0.png", "<OD>", "", "dog" + locs(0, 0, 999, 999))]
    assert refused(f"{made.parent}:test").what == f"{made} has no split `test`"


def test_voc_splits_and_files_beside_their_images(tmp_path):
    made = voc(tmp_path / "a", voc_object("cat", *CORNERS))
    image(made / "JPEGImages" / "1.jpg", SIZE)
    (made / "Annotations" / "1.xml").write_text("<annotation></annotation>")
    (made / "ImageSets" / "Main").mkdir(parents=True)
    (made / "ImageSets" / "Main" / "val.txt").write_text("1\n")
    assert [row[0] for row in said(made)] == ["0.jpg", "1.jpg"]
    assert said(f"{made}:val") == [("1.jpg", "<OD>", "", "")]
    image(tmp_path / "b" / "x.png", SIZE)
    xml = f"<annotation><filename>old.jpg</filename>{voc_object('cat', *CORNERS)}</annotation>"
    (tmp_path / "b" / "x.xml").write_text(xml)
    assert said(tmp_path / "b") == [("x.png", "<OD>", "", "cat" + BOX)]


def test_labelme_shapes(tmp_path):
    triangle = {"label": "cat", "shape_type": "polygon"}
    shapes = [
        {**triangle, "points": [[20, 20], [99.9, 20], [20, 79.9]], "group_id": 1},
        {**triangle, "points": [[120, 20], [130, 20], [120, 30]], "group_id": 1},
        {"label": "sun", "points": [[50, 50], [50, 60]], "shape_type": "circle"},
        {"label": "nose", "points": [[50, 50]], "shape_type": "point"},
    ]
    made = labelme(tmp_path, shapes)
    assert said(made, "region_to_category") == [
        ("0.png", "<REGION_TO_CATEGORY>", locs(100, 200, 650, 799), "cat"),
        ("0.png", "<REGION_TO_CATEGORY>", locs(200, 400, 300, 600), "sun"),
    ]
    ((*_, text),) = said(made, "referring_expression_segmentation")
    assert text.count("<sep>") == 1


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("0 0.5 0.5\n", "line 1 has 2 numbers behind its class"),
        ("cat 0.5 0.5 1 1\n", "line 1 is no row of numbers"),
        ("0 .5 .5 1 1\n9 .5 .5 1 1\n", "line 2 is of class 9, which `names` does not list"),
    ],
)
def test_bad_lines_of_yolo_are_named(tmp_path, lines, what):
    assert refused(yolo(tmp_path, lines)).what == f"{tmp_path}/labels/0.txt {what}"


def test_bad_lists_are_named(tmp_path):
    image(tmp_path / "0.png", SIZE)
    made = coco(tmp_path / "list.json", [{"bbox": [0, 0, 1]}])
    assert refused(made).what == f"{made} image 0, annotation 0 has neither a `bbox` of four numbers nor polygons"
    made = coco(tmp_path / "list.json", [{"bbox": [0, 0, 1, 1], "category_id": 5}])
    assert refused(made).what.endswith("annotation 0 is of category 5, which `categories` does not list")
    made = coco(tmp_path / "list.json", [], images=0)
    assert refused(made).what == f"{made} is no COCO list"


def test_absent_images_are_counted_like_any(tmp_path, cat):
    coco(cat, [{"bbox": [0, 0, 9, 9]}], images=3)
    assert refused(cat).what == f"2 of 3 pictures in {cat} do not exist, the first is {tmp_path}/1.png"
    assert len(said(cat, missing="skip")) == 1


def test_a_table_of_ones_own_comes_first(tmp_path, cat):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}\n')
    assert said(tmp_path, "caption") == [("0.png", "<CAPTION>", "", "a cat")]
