"""The codec against itself: numbers, there and back, order, cutting."""

import math
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.errors import UserError
from florence2.model.locations import decode, encode, encode_region, from_bin, reading_order, shuffled, to_bin, truncate
from florence2.model.tasks import OutputType, find_task
from tests.strategies import THOUSAND, fuzz, locs, sized_values, values

# Numbers


@given(st.integers(0, 20_000), st.integers(1, 20_000))
def test_quantize_is_the_exact_floor(value: int, size: int):
    exact = min(math.floor(Fraction(value * 1000, size)), 999)
    assert to_bin(value, size) == exact


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0, 0),
        (0.639, 0),
        (0.64, 1),  # a bin's lower edge is in it
        (639.999, 999),
        (640, 999),  # never <loc_1000>
        (641, 999),
        (-3, 0),
    ],
)
def test_quantize_floors_and_clamps(value: float, wanted: int):
    assert to_bin(value, 640) == wanted


@given(st.integers(0, 999), st.integers(1, 20_000))
def test_a_bins_middle_is_in_the_bin(n: int, size: int):
    assert to_bin(from_bin(n, size), size) == n


def test_write_region_is_the_input_of_region_tasks():
    region = encode_region([64, 48, 639.9, 480], (640, 480))
    assert region == "<loc_100><loc_100><loc_999><loc_999>"
    assert find_task("region_to_category").format_prompt(region) == f"What is the region {region}?"


# There and back


def assert_near(ours, wanted, size):
    """Assert equality of labels, and of numbers to half a bin."""
    if isinstance(wanted, float):
        assert abs(ours - wanted) <= size / 2000 * (1 + 1e-9)
    elif isinstance(wanted, str):
        assert ours == wanted
    elif isinstance(wanted, dict):
        assert list(ours) == list(wanted)
        for key in wanted:
            assert_near(ours[key], wanted[key], size)
    else:
        assert len(ours) == len(wanted)
        for i, (one, other) in enumerate(zip(ours, wanted, strict=True)):
            assert_near(one, other, size[i % 2] if isinstance(other, float) else size)


@pytest.mark.parametrize("answers", OutputType)
def test_what_is_written_is_read_back_to_half_a_bin(answers):
    @fuzz
    @given(sized_values(answers))
    def check(given):
        value, size = given
        assert_near(decode(answers, encode(answers, value, size), size), value, size)

    check()


@pytest.mark.parametrize(
    ("answers", "value", "text"),
    [
        (OutputType.TEXT, " a cat.</s>\n", "a cat."),
        (OutputType.BOXES, {"bboxes": [], "labels": []}, ""),
        (
            OutputType.BOXES,  # neighbours of one label share it; others repeat it
            {"bboxes": [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 2, 2], [1, 2, 3, 4]], "labels": ["a", "a", "b", "a"]},
            f"a{locs(1, 2, 3, 4, 5, 6, 7, 8)}b{locs(1, 1, 2, 2)}a{locs(1, 2, 3, 4)}",
        ),
        (OutputType.BOXES, {"bboxes": [[0, 0, 1000, 1001]], "labels": [" <loc_3>a <sep>"]}, f"a{locs(0, 0, 999, 999)}"),
        (
            OutputType.BOXES,
            {"bboxes": [[1, 2, 3, 4]] * 2, "labels": ["a", ""]},
            f"a{locs(1, 2, 3, 4)} {locs(1, 2, 3, 4)}",
        ),
        (OutputType.PHRASES, {"bboxes": [[1, 2, 3, 4]], "labels": ["a cat"]}, f"a cat{locs(1, 2, 3, 4)}"),
        (OutputType.REGIONS, {"bboxes": [[1, 2, 3, 4]] * 2, "labels": ["lost", ""]}, locs(1, 2, 3, 4) * 2),
        (
            OutputType.QUADS,  # a label is never shared
            {"quad_boxes": [[1, 2, 3, 4, 5, 6, 7, 8]] * 2, "labels": ["no"] * 2},
            f"no{locs(*range(1, 9))}" * 2,
        ),
        (
            OutputType.POLYGONS,
            {"polygons": [[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]], "labels": ["lost"]},
            f"{locs(*range(1, 7))}<sep>{locs(*range(7, 13))}",
        ),
        (OutputType.POLYGONS, {"polygons": [[[1, 2]]], "labels": [""]}, f"<poly>{locs(1, 2)}</poly>"),
        (OutputType.POLYGONS, {"polygons": [[[1, 2, 3, 4]], [[], [5]], []]}, locs(1, 2, 3, 4)),  # no points, no object
        (
            OutputType.POLYGONS,
            {"polygons": [[[1, 2, 3, 4]], [[5, 6], [7, 8]]]},
            f"<poly>{locs(1, 2, 3, 4)}</poly><poly>{locs(5, 6)}<sep>{locs(7, 8)}</poly>",
        ),
        (
            OutputType.BOXES_OR_POLYGONS,
            {
                "bboxes": [[1, 2, 3, 4]] * 2,
                "bboxes_labels": ["a", "a"],
                "polygons": [[[5, 6, 7, 8]], [[5, 6], [7, 8]]],
                "polygons_labels": ["a", "a"],
            },
            f"a{locs(1, 2, 3, 4) * 2}a<poly>{locs(5, 6, 7, 8)}</poly><poly>{locs(5, 6)}<sep>{locs(7, 8)}</poly>",
        ),
        (OutputType.BOXES_OR_POLYGONS, {"bboxes": [[1, 2, 3, 4]], "labels": ["a"]}, f"a{locs(1, 2, 3, 4)}"),
    ],
)
def test_write(answers, value, text):
    assert encode(answers, value, THOUSAND) == text


@pytest.mark.parametrize(
    ("answers", "value", "what"),
    [
        (OutputType.BOXES, {"bboxes": [[1, 2, 3, 4]], "labels": []}, "0 labels for 1 `bboxes`"),
        (OutputType.BOXES, {"boxes": [], "labels": []}, "the answer holds `boxes`, `labels`, not `bboxes`"),
        (OutputType.BOXES_OR_POLYGONS, {"labels": []}, "the answer holds `labels`, not `bboxes` or `polygons`"),
        (OutputType.TEXT, {"bboxes": []}, "the answer holds `bboxes`, not a text"),
    ],
)
def test_a_value_of_another_kind_is_refused(answers, value, what):
    with pytest.raises(UserError) as error:
        encode(answers, value, THOUSAND)
    assert error.value.what == what


# Order, and cutting


def test_reading_order_goes_by_rows():
    quads = {"one": (10, 12), "two": (50, 10), "three": (90, 14), "four": (5, 31), "five": (60, 30)}
    value = {
        "quad_boxes": [[x, y, x + 30, y, x + 30, y + 10, x, y + 10] for x, y in quads.values()],
        "labels": [*quads],
    }
    mixed = shuffled(value, random.Random(3))
    assert mixed["labels"] != value["labels"]
    assert reading_order(mixed) == value


def test_order_keeps_every_object_with_its_label_and_score():
    boxes = [[n, n, n + 1, n + 1] for n in range(6)]
    value = {"bboxes": boxes, "bboxes_labels": list("abcdef"), "bboxes_scores": list(range(6)), "polygons": []}
    mixed = shuffled(value, random.Random(0))
    assert mixed["bboxes"] != boxes
    assert [box[0] for box in mixed["bboxes"]] == mixed["bboxes_scores"]
    assert ["abcdef".index(label) for label in mixed["bboxes_labels"]] == mixed["bboxes_scores"]
    assert reading_order(mixed) == value
    assert value["bboxes"] == boxes
    assert shuffled("text", random.Random(0)) == reading_order("text") == "text"


def test_reading_order_keeps_duplicates_and_equals():
    value = {"polygons": [[[5, 5, 9, 9]], [[1, 1, 2, 2], [0, 9, 1, 1]], [[5, 5, 9, 9]], []], "labels": list("abcd")}
    assert reading_order(value)["labels"] == ["d", "b", "a", "c"]


@pytest.mark.parametrize("answers", [kind for kind in OutputType if kind is not OutputType.TEXT])
def test_cut_keeps_as_many_whole_objects_as_fit(answers):
    @fuzz
    @given(values(answers, THOUSAND), st.integers(0, 40))
    def check(value, limit):
        shorter, dropped = truncate(answers, value, THOUSAND, limit, len_in_tokens)
        assert len_in_tokens(encode(answers, shorter, THOUSAND)) <= limit
        kept, everything = ([(key, x) for key in v for x in v[key] if "labels" in key] for v in (shorter, value))
        assert kept == everything[: len(kept)]
        assert dropped == len(everything) - len(kept)
        longer, fewer = truncate(answers, value, THOUSAND, limit + 1, len_in_tokens)
        assert fewer <= dropped
        if dropped:
            assert truncate(answers, longer, THOUSAND, 10**9, len_in_tokens) == (longer, 0)
            assert len_in_tokens(encode(answers, value, THOUSAND)) > limit

    check()


def len_in_tokens(text: str) -> int:
    return len(re.findall(r"<[^<>]+>|\w+|\s", text))


@pytest.mark.parametrize(("limit", "gone"), [(15, 0), (14, 1), (10, 1), (9, 2), (4, 3), (0, 3), (-1, 3)])
def test_cut_says_how_many_went(limit: int, gone: int):
    value = {"bboxes": [[1, 2, 3, 4]] * 3, "labels": ["a", "b", "c"]}
    shorter, dropped = truncate(OutputType.BOXES, value, THOUSAND, limit, len_in_tokens)
    assert (shorter["labels"], dropped) == (["a", "b", "c"][: 3 - gone], gone)


def test_cut_drops_polygons_before_boxes():
    value = {
        "bboxes": [[1, 2, 3, 4]],
        "bboxes_labels": ["a"],
        "polygons": [[[1, 2]]] * 2,
        "polygons_labels": ["b", "c"],
    }
    shorter, dropped = truncate(OutputType.BOXES_OR_POLYGONS, value, THOUSAND, 10, len_in_tokens)
    assert dropped == 1
    assert shorter == value | {"polygons": [[[1, 2]]], "polygons_labels": ["b"]}


def test_words_are_never_cut():
    assert truncate(OutputType.TEXT, "many words", THOUSAND, 1, len_in_tokens) == ("many words", 0)
