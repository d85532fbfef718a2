"""The codec against itself: bins, round trip, order, truncation."""

import math
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.model.answer import Answer, AnswerItem
from florence2.model.locations import clean_text, decode, encode, encode_region, from_bin, to_bin, truncate
from florence2.model.tasks import OutputType, find_task
from tests.strategies import THOUSAND, fuzz, locs, sized_answers

STRUCTURED = [kind for kind in OutputType if kind is not OutputType.TEXT]

# Bins


@given(st.integers(0, 20_000), st.integers(1, 20_000))
def test_bin_is_the_exact_floor(value: int, size: int):
    exact = min(math.floor(Fraction(value * 1000, size)), 999)
    assert to_bin(value, size) == exact


@pytest.mark.parametrize(
    ("value", "expected"),
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
def test_bin_is_floored_and_clamped(value: float, expected: int):
    assert to_bin(value, 640) == expected


@given(st.integers(0, 999), st.integers(1, 20_000))
def test_center_of_a_bin_is_in_the_bin(n: int, size: int):
    assert to_bin(from_bin(n, size), size) == n


def test_encoded_region_is_the_input_of_region_tasks():
    region = encode_region([64, 48, 639.9, 480], (640, 480))
    assert region == "<loc_100><loc_100><loc_999><loc_999>"
    assert find_task("region_to_category").format_prompt(region) == f"What is the region {region}?"


# Round trip


def assert_near(ours, expected, size):
    """Assert equality of labels, and of numbers to half a bin."""
    if isinstance(expected, float):
        assert abs(ours - expected) <= size / 2000 * (1 + 1e-9)
    elif isinstance(expected, str):
        assert ours == expected
    elif isinstance(expected, dict):
        assert list(ours) == list(expected)
        for key in expected:
            assert_near(ours[key], expected[key], size)
    else:
        assert len(ours) == len(expected)
        for i, (one, other) in enumerate(zip(ours, expected, strict=True)):
            assert_near(one, other, size[i % 2] if isinstance(other, float) else size)


@pytest.mark.parametrize("output_type", STRUCTURED)
def test_decoded_answer_equals_encoded_answer_to_half_a_bin(output_type):
    @fuzz
    @given(sized_answers(output_type))
    def check(sized):
        answer, size = sized
        assert_near(decode(output_type, encode(output_type, answer, size), size).to_dict(), answer.to_dict(), size)

    check()


@pytest.mark.parametrize(
    ("output_type", "value", "text"),
    [
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
def test_encode(output_type, value, text):
    assert encode(output_type, Answer.from_dict(value, output_type), THOUSAND) == text


@pytest.mark.parametrize(
    ("text", "clean"), [(" a cat.</s>\n", "a cat."), ("<s><pad>a <od> b</s>", "a <od> b"), ("<</s>s>a", "a"), ("", "")]
)
def test_clean_text(text, clean):
    assert clean_text(text) == clean
    assert not decode(OutputType.TEXT, text, THOUSAND)


# Order, and truncation


def test_reading_order_goes_by_rows():
    corners = {"one": (10, 12), "two": (50, 10), "three": (90, 14), "four": (5, 31), "five": (60, 30)}
    quads = {label: [x, y, x + 30, y, x + 30, y + 10, x, y + 10] for label, (x, y) in corners.items()}
    answer = Answer(OutputType.QUADS, tuple(AnswerItem.quad(quad, label) for label, quad in quads.items()))
    shuffled = answer.shuffled(random.Random(3))
    assert shuffled.labels != answer.labels
    assert shuffled.in_reading_order() == answer


def test_reordered_objects_keep_their_labels_and_scores():
    items = tuple(AnswerItem.box([n, n, n + 1, n + 1], "abcdef"[n], n) for n in range(6))
    answer = Answer(OutputType.BOXES_OR_POLYGONS, items, has_scores=True)
    shuffled = answer.shuffled(random.Random(0))
    assert shuffled.scores != answer.scores
    assert [item.rings[0][0] for item in shuffled] == shuffled.scores
    assert ["abcdef".index(label) for label in shuffled.labels] == shuffled.scores
    assert shuffled.in_reading_order() == answer
    assert answer.items == items


def test_reading_order_keeps_duplicates_and_ties():
    polygons = [[[5, 5, 9, 9]], [[1, 1, 2, 2], [0, 9, 1, 1]], [[5, 5, 9, 9]], []]
    answer = Answer.from_dict({"polygons": polygons, "labels": list("abcd")})
    assert answer.in_reading_order().labels == ["d", "b", "a", "c"]


@pytest.mark.parametrize("output_type", STRUCTURED)
def test_truncation_keeps_as_many_complete_objects_as_fit(output_type):
    @fuzz
    @given(sized_answers(output_type), st.integers(0, 40))
    def check(sized, limit):
        answer, size = sized
        shorter, num_dropped = truncate(output_type, answer, size, limit, len_in_tokens)
        assert len_in_tokens(encode(output_type, shorter, size)) <= limit
        assert shorter.items == answer.items[: len(shorter)]
        assert num_dropped == len(answer) - len(shorter)
        longer, fewer = truncate(output_type, answer, size, limit + 1, len_in_tokens)
        assert fewer <= num_dropped
        if num_dropped:
            assert truncate(output_type, longer, size, 10**9, len_in_tokens) == (longer, 0)
            assert len_in_tokens(encode(output_type, answer, size)) > limit

    check()


def len_in_tokens(text: str) -> int:
    return len(re.findall(r"<[^<>]+>|\w+|\s", text))


@pytest.mark.parametrize(("limit", "num_dropped"), [(15, 0), (14, 1), (10, 1), (9, 2), (4, 3), (0, 3), (-1, 3)])
def test_truncation_counts_dropped_objects(limit: int, num_dropped: int):
    answer = Answer(OutputType.BOXES, tuple(AnswerItem.box([1, 2, 3, 4], label) for label in "abc"))
    shorter, count = truncate(OutputType.BOXES, answer, THOUSAND, limit, len_in_tokens)
    assert (shorter.labels, count) == (["a", "b", "c"][: 3 - num_dropped], num_dropped)


def test_truncation_drops_polygons_before_boxes():
    items = (AnswerItem.box([1, 2, 3, 4], "a"), AnswerItem.mask([[1, 2]], "b"), AnswerItem.mask([[1, 2]], "c"))
    answer = Answer(OutputType.BOXES_OR_POLYGONS, items)
    shorter, num_dropped = truncate(OutputType.BOXES_OR_POLYGONS, answer, THOUSAND, 10, len_in_tokens)
    assert num_dropped == 1
    assert shorter.items == items[:2]
