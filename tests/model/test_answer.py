"""The answer: transformers' dictionary in and out, geometry, order, other libraries' forms."""

import math
import pickle
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given

from florence2.errors import UserError
from florence2.model.answer import Answer, AnswerItem, GeometryKind
from florence2.model.geometry import clip_polygon, polygon_area
from florence2.model.tasks import OutputType
from tests.strategies import fuzz, sized_values

STRUCTURED = [kind for kind in OutputType if kind is not OutputType.TEXT]
BOXES = Answer(OutputType.BOXES, (AnswerItem.box([10, 20, 30, 60], "cat", 0.9), AnswerItem.box([0, 0, 4, 5], "dog")))
MIXED = Answer(
    OutputType.BOXES_OR_POLYGONS,
    (AnswerItem.mask([[0, 0, 8, 0, 8, 8]], "b"), AnswerItem.box([1, 2, 3, 4], "a")),
)


# The dictionary


@pytest.mark.parametrize("output_type", STRUCTURED)
def test_dictionary_survives_the_round_trip(output_type):
    @fuzz
    @given(sized_values(output_type))
    def check(sized):
        value, _ = sized
        read = Answer.from_dict(value, output_type).to_dict()
        assert read == value
        assert list(read) == list(value)
        assert Answer.from_dict(read, output_type) == Answer.from_dict(value, output_type)

    check()


@pytest.mark.parametrize(
    ("value", "output_type"),
    [
        ({"bboxes": [], "labels": [], "scores": []}, OutputType.BOXES),
        ({"bboxes": [[1, 2, 3, 4]], "labels": ["a"], "scores": [None]}, OutputType.BOXES),
        ({"bboxes": [[1, 2, 3, 4.5]], "labels": ["a"], "scores": [0.5]}, OutputType.BOXES),
        ({"quad_boxes": [[1, 2, 3, 4, 5, 6, 7, 8]], "labels": ["a"], "scores": [1]}, OutputType.QUADS),
        ({"polygons": [[[1, 2, 3, 4, 5, 6], []], []], "labels": ["", "x"]}, OutputType.POLYGONS),
        (
            {
                "bboxes": [[1, 2, 3, 4]],
                "bboxes_labels": ["a"],
                "polygons": [],
                "polygons_labels": [],
                "bboxes_scores": [0.5],
                "polygons_scores": [],
            },
            OutputType.BOXES_OR_POLYGONS,
        ),
    ],
)
def test_keys_decide_the_output_type(value, output_type):
    answer = Answer.from_dict(value)
    assert answer.output_type is output_type
    assert answer.to_dict() == value
    assert list(answer.to_dict()) == list(value)


@pytest.mark.parametrize(
    ("value", "output_type", "labels"),
    [
        ({"bboxes": [[1, 2, 3, 4]]}, OutputType.REGIONS, [""]),  # labels of regions may be missing
        ({"polygons": [[[1, 2]], [[3, 4]]], "labels": ["a"]}, OutputType.POLYGONS, ["", ""]),
        ({"bboxes": [[1, 2, 3, 4]], "labels": [None]}, OutputType.BOXES, [""]),
        ({"bboxes": [[1, 2, 3, 4]], "labels": ["a"]}, OutputType.BOXES_OR_POLYGONS, ["a"]),
        ({"bboxes": [], "labels": [], "polygons": [[[1, 2]]]}, OutputType.BOXES, []),  # another task's key
        ({"bboxes": [[1, 2, 3, 4]], "labels": ["a"], "quad_boxes": None}, None, ["a"]),  # a table's empty column
    ],
)
def test_reader_accepts(value, output_type, labels):
    assert Answer.from_dict(value, output_type).labels == labels


@pytest.mark.parametrize(
    ("value", "output_type", "what"),
    [
        ({"bboxes": [[1, 2, 3, 4]], "labels": []}, OutputType.BOXES, "0 labels for 1 `bboxes`"),
        ({"bboxes": [[1, 2, 3, 4]]}, OutputType.BOXES, "0 labels for 1 `bboxes`"),
        ({"bboxes": [], "labels": [], "scores": [1]}, OutputType.BOXES, "1 scores for 0 `bboxes`"),
        ({"boxes": [], "labels": []}, OutputType.BOXES, "the answer holds `boxes`, `labels`, not `bboxes`"),
        ({"labels": []}, OutputType.BOXES_OR_POLYGONS, "the answer holds `labels`, not `bboxes` or `polygons`"),
        ({"bboxes": []}, OutputType.TEXT, "the answer holds `bboxes`, not a text"),
        ({}, None, "the answer holds nothing, not `bboxes`"),
        ({"bboxes": 5}, None, "`bboxes` is `5`, not a list"),
        ({"bboxes": [[1, 2, 3]], "labels": ["a"]}, None, "`bboxes` holds `[1, 2, 3]`, not 4 numbers"),
        ({"bboxes": [None], "labels": ["a"]}, None, "`bboxes` holds `None`, not 4 numbers"),
        ({"bboxes": [["1", 2, 3, 4]], "labels": ["a"]}, None, "`bboxes` holds `['1', 2, 3, 4]`, not 4 numbers"),
        ({"quad_boxes": [[1, 2, 3, 4]], "labels": ["a"]}, None, "`quad_boxes` holds `[1, 2, 3, 4]`, not 8 numbers"),
        ({"polygons": [[1, 2]]}, None, "`polygons` holds `[1, 2]`, not a list of polygons [x, y, x, y, ...]"),
        (
            {"polygons": [[[math.inf, 2]]]},
            None,
            "`polygons` holds `[[inf, 2]]`, not a list of polygons [x, y, x, y, ...]",
        ),
        ({"bboxes": [[1, 2, 3, 4]], "labels": ["a"], "scores": ["x"]}, None, "a score is `x`, not a number"),
    ],
)
def test_malformed_dictionary_is_refused(value, output_type, what):
    with pytest.raises(UserError) as error:
        Answer.from_dict(value, output_type)
    assert error.value.what == what
    assert error.value.hint


def test_answer_is_a_sequence_of_objects_boxes_first():
    assert len(MIXED) == 2
    assert [item.kind for item in MIXED] == [GeometryKind.BBOXES, GeometryKind.POLYGONS]
    assert (MIXED.labels, MIXED.scores) == (["a", "b"], [None, None])
    assert (MIXED.bboxes, MIXED.polygons, MIXED.quad_boxes) == ([[1, 2, 3, 4]], [[[0, 0, 8, 0, 8, 8]]], [])
    assert not Answer(OutputType.BOXES)
    assert pickle.loads(pickle.dumps(MIXED)) == MIXED


# Geometry


@pytest.mark.parametrize(
    ("item", "box", "area"),
    [
        (AnswerItem.box([1, 2, 4, 8]), [1, 2, 4, 8], 18),
        (AnswerItem.box([4, 8, 1, 2]), [1, 2, 4, 8], 18),  # swapped corners
        (AnswerItem.quad([1, 0, 3, 1, 2, 3, 0, 2]), [0, 0, 3, 3], 5),
        (AnswerItem.mask([[0, 0, 4, 0, 0, 4], [6, 6, 8, 6, 8, 8, 6, 8]]), [0, 0, 8, 8], 12),
        (AnswerItem.mask([]), [0, 0, 0, 0], 0),
    ],
)
def test_bounding_box_and_area(item, box, area):
    assert item.bounding_box == box
    assert item.area == area


def test_scaling_moving_and_flipping():
    assert BOXES.scaled(2, 0.5).bboxes == [[20, 10, 60, 30], [0, 0, 8, 2.5]]
    assert BOXES.translated(-1, 2).bboxes == [[9, 22, 29, 62], [-1, 2, 3, 7]]
    assert BOXES.flipped(100).bboxes == [[70, 20, 90, 60], [96, 0, 100, 5]]
    quad = Answer(OutputType.QUADS, (AnswerItem.quad([1, 0, 3, 1, 2, 3, 0, 2]),))
    assert quad.flipped(10).quad_boxes == [[7, 1, 9, 0, 10, 2, 8, 3]]  # from the top left, clockwise
    assert MIXED.flipped(10).polygons == [[[2, 8, 2, 0, 10, 0]]]
    assert quad.flipped(10).flipped(10) == quad
    assert BOXES.scaled(2, 2).scores == BOXES.scores


@pytest.mark.parametrize(
    ("item", "box", "min_visible", "found"),
    [
        (AnswerItem.box([10, 20, 30, 60]), (10, 20, 30, 60), 1.0, [0, 0, 20, 40]),
        (AnswerItem.box([10, 20, 30, 60]), (20, 0, 40, 40), 0.25, [0, 20, 10, 40]),
        (AnswerItem.box([10, 20, 30, 60]), (20, 0, 40, 40), 0.26, None),
        (AnswerItem.box([10, 20, 30, 60]), (30, 0, 40, 40), 0.0, None),  # it only touches
        (AnswerItem.quad([0, 0, 9, 0, 9, 9, 0, 9]), (0, 0, 9, 9), 0.0, [0, 0, 9, 0, 9, 9, 0, 9]),
        (AnswerItem.quad([0, 0, 9, 0, 9, 9, 0, 9]), (1, 0, 9, 9), 0.0, None),  # a cut line of text
        (AnswerItem.mask([[0, 0, 8, 0, 8, 8, 0, 8]]), (4, 4, 9, 9), 0.25, [[0, 0, 4, 0, 4, 4, 0, 4]]),
        (AnswerItem.mask([[0, 0, 8, 0, 8, 8, 0, 8]]), (4, 4, 9, 9), 0.26, None),
    ],
)
def test_crop(item, box, min_visible, found):
    answer = Answer(OutputType.BOXES_OR_POLYGONS, (item,)).cropped(box, min_visible)
    positions = [cropped.coordinates for cropped in answer]
    if found is None:
        assert not positions
    elif item.kind is GeometryKind.POLYGONS:
        assert [sorted(zip(ring[::2], ring[1::2], strict=True)) for ring in positions[0]] == [
            sorted(zip(ring[::2], ring[1::2], strict=True)) for ring in found
        ]
    else:
        assert positions == [found]


def test_clip_keeps_what_is_inside_the_image():
    items = [
        AnswerItem.box([-5, -5, 5, 5], "cut"),
        AnswerItem.box([20, 20, 30, 30], "outside"),
        AnswerItem.quad([-2, 0, 4, 0, 4, 4, -2, 4], "cut quad"),
        AnswerItem.quad([-2, 0, -1, 0, -1, 4, -2, 4], "outside quad"),
        AnswerItem.mask([[5, 0, 15, 0, 15, 5, 5, 5]], "cut mask"),
    ]
    clipped = Answer(OutputType.BOXES_OR_POLYGONS, tuple(items)).clipped((10, 10))
    assert clipped.labels == ["cut", "cut quad", "cut mask"]
    assert [item.bounding_box for item in clipped] == [[0, 0, 5, 5], [0, 0, 4, 4], [5, 0, 10, 5]]


def test_clipped_polygon_has_the_area_inside():
    rng = random.Random(1)
    for _ in range(50):
        triangle = [rng.uniform(-10, 20) for _ in range(6)]
        clipped = clip_polygon(triangle, (10, 10))
        points = np.array([[rng.uniform(0, 10), rng.uniform(0, 10)] for _ in range(2000)])
        inside = np.mean([_is_in_triangle(point, triangle) for point in points])
        assert polygon_area(clipped) / 100 == pytest.approx(inside, abs=0.06)


def _is_in_triangle(point, triangle):
    corners = [triangle[i : i + 2] for i in (0, 2, 4)]
    sides = [
        (b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0])
        for a, b in zip(corners, [*corners[1:], corners[0]], strict=True)
    ]
    return all(side >= 0 for side in sides) or all(side <= 0 for side in sides)


# Selection and order


@pytest.mark.parametrize(
    ("arguments", "labels"),
    [
        ({}, ["cat", "dog"]),
        ({"score": 0.9}, ["cat"]),  # without a score no object passes
        ({"score": 0.95}, []),
        ({"label": "dog"}, ["dog"]),
        ({"label": ["dog", "cat"]}, ["cat", "dog"]),
        ({"score": 0.5, "label": "dog"}, []),
    ],
)
def test_filter(arguments, labels):
    assert BOXES.filter(**arguments).labels == labels


def test_first_drops_polygons_before_boxes():
    assert [MIXED.first(count).labels for count in (-1, 0, 1, 2, 3)] == [[], [], ["a"], ["a", "b"], ["a", "b"]]


def test_order_by_reading_and_by_chance():
    boxes = [
        AnswerItem.box([x, y, x + 30, y + 10], label) for x, y, label in ((90, 14, "c"), (10, 12, "a"), (50, 10, "b"))
    ]
    answer = Answer(OutputType.BOXES, tuple(boxes))
    assert answer.in_reading_order().labels == ["a", "b", "c"]
    orders = {tuple(answer.shuffled(random.Random(seed)).labels) for seed in range(50)}
    assert len(orders) == 6


def test_merged_answer_has_all_objects_boxes_first():
    merged = Answer.merged([MIXED, MIXED])
    assert merged.labels == ["a", "a", "b", "b"]
    assert merged.output_type is OutputType.BOXES_OR_POLYGONS


# Other libraries


def test_coco_annotations():
    rows = MIXED.to_coco(7, {"a": 1, "b": 2}, first_id=5)
    common = {"image_id": 7, "iscrowd": 0}
    assert rows == [
        {"id": 5, "category_id": 1, "bbox": [1, 2, 2, 2], "area": 4, "segmentation": [], **common},
        {"id": 6, "category_id": 2, "bbox": [0, 0, 8, 8], "area": 32, "segmentation": [[0, 0, 8, 0, 8, 8]], **common},
    ]
    assert [(row["id"], row["score"]) for row in BOXES.to_coco(1, {"cat": 3})] == [(1, 0.9)]


def test_supervision_detections(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=lambda **fields: fields))
    scored = Answer(OutputType.BOXES, BOXES.items[:1], has_scores=True).to_supervision()
    assert scored["xyxy"].tolist() == [[10, 20, 30, 60]]
    assert scored["confidence"].tolist() == [pytest.approx(0.9)]
    assert (scored["class_id"].tolist(), scored["data"]["class_name"].tolist()) == ([0], ["cat"])
    assert BOXES.to_supervision()["confidence"] is None
    assert Answer(OutputType.BOXES).to_supervision()["xyxy"].shape == (0, 4)


def test_supervision_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="`supervision`") as error:
        BOXES.to_supervision()
    assert error.value.hint == "pip install supervision"
