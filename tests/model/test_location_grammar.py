"""Any text at all is read, and objects say where they stand in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2.model.location_grammar import decode_objects
from florence2.model.locations import decode, encode
from florence2.model.tasks import OutputType
from tests.strategies import BOX, THOUSAND, debris, fuzz, locs, sizes
from tests.tiny import tiny_processor


def assert_sound(answers, text, size):
    """Assert that the answer has its shape, lies in the picture, and is written and read again as itself."""
    answer = decode(answers, text, size)
    assert len(answer) == len(list(decode_objects(answers, text)))
    assert all(len(box) == 4 for box in answer.bboxes)
    assert all(0 < value < size[i % 2] for item in answer for ring in item.rings for i, value in enumerate(ring))
    assert decode(answers, encode(answers, answer, size), size) == answer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_processor().tokenizer


@pytest.mark.parametrize("answers", OutputType)
@fuzz
@given(text=st.text() | debris, size=sizes)
def test_any_string_is_read(answers, text, size):
    assert_sound(answers, text, size)


@pytest.mark.parametrize("answers", OutputType)
def test_any_token_sequence_is_read(tokenizer, answers):
    first, last = tokenizer.convert_tokens_to_ids(["<od>", "<and>"])
    layout = [
        tokenizer.convert_tokens_to_ids(token) for token in ("<sep>", "<poly>", "</poly>", "<s>", "</s>", "<pad>")
    ]
    ids = st.integers(0, last + 1) | st.integers(first, last) | st.sampled_from(layout)

    @fuzz
    @given(st.lists(ids, max_size=60))
    def check(sequence):
        assert_sound(answers, tokenizer.decode(sequence), THOUSAND)

    check()


def test_a_long_answer_is_read_quickly():
    for piece in (BOX, "<poly>", "</poly>", f"a{BOX}", "<loc_1><poly>", "<sep>", "a<pad>"):
        for answers in OutputType:
            decode(answers, piece * 4096, THOUSAND)


# Where objects stand


def test_objects_say_where_they_stand():
    text = f"<s>a{BOX}<pad>{BOX}b<pad>c<poly>{BOX}<sep>{locs(5, 6)}</poly><poly>{BOX}</poly></s>"
    found = list(decode_objects(OutputType.BOXES_OR_POLYGONS, text))
    assert [text[slice(*one.label_span)] for one in found] == ["a", "a", "b<pad>c", "b<pad>c"]
    assert [text[slice(*one.span)] for one in found] == [BOX, BOX, f"{BOX}<sep>{locs(5, 6)}", BOX]
    assert [one.label for one in found] == ["a", "a", "bc", "bc"]
    assert [one.kind for one in found] == ["bboxes", "bboxes", "polygons", "polygons"]
    assert found[2].bins == ((1, 2, 3, 4), (5, 6))


def test_an_unlabelled_object_has_an_empty_label_span():
    [one] = decode_objects(OutputType.REGIONS, f"a{BOX}")
    assert (one.label_span, one.span) == ((1, 1), (1, 1 + len(BOX)))
