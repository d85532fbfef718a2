"""Decoding of arbitrary text to objects, and the spans of objects."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.model.location_grammar import decode_objects
from florence2.model.locations import decode, encode
from florence2.model.tasks import OutputType
from tests.strategies import BOX, THOUSAND, fuzz, locs, malformed_texts, sizes
from tests.tiny import tiny_processor


def assert_valid(output_type, text, size):
    """Assert that the answer is well-formed, inside the image, and survives encoding and decoding."""
    answer = decode(output_type, text, size)
    assert len(answer) == len(list(decode_objects(output_type, text)))
    assert all(len(box) == 4 for box in answer.bboxes)
    assert all(0 < value < size[i % 2] for item in answer for ring in item.rings for i, value in enumerate(ring))
    assert decode(output_type, encode(output_type, answer, size), size) == answer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_processor().tokenizer


@pytest.mark.parametrize("output_type", OutputType)
@fuzz
@given(text=st.text() | malformed_texts, size=sizes)
def test_any_string_decodes(output_type, text, size):
    assert_valid(output_type, text, size)


@pytest.mark.parametrize("output_type", OutputType)
def test_any_token_sequence_decodes(tokenizer, output_type):
    first, last = tokenizer.convert_tokens_to_ids(["<od>", "<and>"])
    layout = [
        tokenizer.convert_tokens_to_ids(token) for token in ("<sep>", "<poly>", "</poly>", "<s>", "</s>", "<pad>")
    ]
    ids = st.integers(0, last + 1) | st.integers(first, last) | st.sampled_from(layout)

    @fuzz
    @given(st.lists(ids, max_size=60))
    def check(sequence):
        assert_valid(output_type, tokenizer.decode(sequence), THOUSAND)

    check()


@pytest.mark.parametrize("output_type", OutputType)
@pytest.mark.parametrize("piece", [BOX, "<poly>", "</poly>", f"a{BOX}", "<loc_1><poly>", "<sep>", "a<pad>"])
def test_decoding_time_is_linear_in_the_length(output_type, piece):
    num_pieces = 4096  # where the time is quadratic, it is minutes
    start = time.process_time()
    decode(output_type, piece * num_pieces, THOUSAND)
    assert time.process_time() - start < 5


def test_long_answer_has_all_its_boxes():
    assert len(decode(OutputType.REGIONS, BOX * 4096, THOUSAND)) == 4096
    assert decode(OutputType.BOXES, f"a{BOX}" * 4096, THOUSAND).labels == ["a"] * 4096


# Spans


def test_objects_have_their_spans():
    text = f"<s>a{BOX}<pad>{BOX}b<pad>c<poly>{BOX}<sep>{locs(5, 6)}</poly><poly>{BOX}</poly></s>"
    objects = list(decode_objects(OutputType.BOXES_OR_POLYGONS, text))
    assert [text[slice(*one.label_span)] for one in objects] == ["a", "a", "b<pad>c", "b<pad>c"]
    assert [text[slice(*one.span)] for one in objects] == [BOX, BOX, f"{BOX}<sep>{locs(5, 6)}", BOX]
    assert [one.label for one in objects] == ["a", "a", "bc", "bc"]
    assert [one.kind for one in objects] == ["bboxes", "bboxes", "polygons", "polygons"]
    assert objects[2].bins == ((1, 2, 3, 4), (5, 6))


def test_unlabeled_object_has_an_empty_label_span():
    [one] = decode_objects(OutputType.REGIONS, f"a{BOX}")
    assert (one.label_span, one.span) == ((1, 1), (1, 1 + len(BOX)))
