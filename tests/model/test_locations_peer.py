"""The codec against transformers' own parsers: equal, but for the differences that `locations.py` states."""

import re
import string

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

from florence2.model.answer import Answer
from florence2.model.locations import clean_text, decode, encode, to_bin
from florence2.model.tasks import TASKS, OutputType, find_task
from tests.strategies import BOX, THOUSAND, fuzz, locs, markers, places, sized_values, sizes
from tests.tiny import tiny_processor

BANNED = ["it", "the image"]
TOKENS = {task.output_type: task.token for task in TASKS}


@pytest.fixture(scope="module")
def processor():
    kinds = ["pure_text", "description_with_bboxes", "bboxes", "polygons", "ocr", "description_with_bboxes_or_polygons"]
    config = {kind: {} for kind in kinds} | {"phrase_grounding": {"banned_grounding_tokens": BANNED}}
    processor = tiny_processor()
    processor.post_processor = Florence2PostProcessor(config=config, tokenizer=processor.tokenizer)
    return processor


@given(st.floats(0, 5000, width=32), st.integers(1, 5000))
def test_quantize_equals_transformers_off_the_edges(processor, value: float, size: int):
    place = value * 1000 / size
    assume(abs(place - round(place)) > 1e-6)
    theirs = processor.post_processor.quantize(torch.tensor([[value, value]], dtype=torch.float64), (size, size))
    assert theirs.tolist() == [[to_bin(value, size)] * 2]


words = st.text(string.printable.replace("<", "").replace("\n", "").replace("\r", "")[:94], min_size=1, max_size=8)
words = (words | st.sampled_from(["it", "the image", "stop-sign", "a, 2"])).filter(str.strip)
sequences = {
    OutputType.TEXT: words | places | st.sampled_from(["<s>", "</s>", "<sep>"]),
    OutputType.BOXES: words | places | markers | st.lists(places, min_size=3, max_size=9).map("".join),
    OutputType.REGIONS: words | places | markers | st.lists(places, min_size=3).map("".join) | st.just("<sep>"),
    OutputType.QUADS: words | places | markers | st.lists(places, min_size=7, max_size=18).map("".join),
    OutputType.POLYGONS: words
    | markers
    | st.sampled_from(["<sep>", "<poly>", "</poly>"])
    | st.lists(places, min_size=1, max_size=9).map("".join),
}
sequences[OutputType.PHRASES] = sequences[OutputType.BOXES]


def texts(answers: OutputType):
    """Answers, most of them damaged; open-vocabulary ones are all boxes or all polygons, as transformers needs it."""
    if answers is not OutputType.BOXES_OR_POLYGONS:
        return st.lists(sequences[answers]).map("".join)
    inside = st.sampled_from(["<sep>", "<poly>", "</poly>", "</poly><poly>"]) | st.lists(places).map("".join)
    masks = st.tuples(words, st.just("<poly>"), st.lists(inside, max_size=6).map("".join)).map("".join)
    return texts(OutputType.BOXES) | st.lists(masks).map("".join)


def their_answer(processor, answers: OutputType, text: str, size):
    """Return transformers' answer but for the differences 4 and 8 of the module's list."""
    token = TOKENS[answers]
    value = processor.post_process_generation(text, task=token, image_size=size)[token]
    for form in [] if answers is OutputType.TEXT else ["bboxes", "quad_boxes", "polygons"]:
        key = f"{form}_labels" if f"{form}_labels" in value else "labels"
        if form in value:
            pairs = [
                (mended_label(label), mended_place(place)) for label, place in zip(value[key], value[form], strict=True)
            ]
            if answers is OutputType.POLYGONS:
                pairs = [(mended_label(label), mended_place(value[form][i])) for i, label in enumerate(value[key])]
            if answers is OutputType.POLYGONS:
                pairs = [("", place) for _, place in pairs]
            unwanted = [None, *BANNED] if answers is OutputType.PHRASES else [None]
            pairs = [(label, place) for label, place in pairs if label not in unwanted and place]
            value |= {key: [label for label, _ in pairs], form: [place for _, place in pairs]}
    return value


def our_value(output_type: OutputType, text: str, size, banned=()):
    if output_type is OutputType.TEXT:
        return clean_text(text)
    return decode(output_type, text, size, banned=banned).to_dict()


def mended_label(label: str) -> str | None:
    """Return what stands behind the last (half) special token; None where nothing does."""
    half, label = re.fullmatch(r"(.*(?:loc_\d+|sep|/?poly)>)?(.*)", label).groups()
    return None if half and not label else label.strip()


def mended_place(place: list) -> list:
    return [polygon for polygon in place if polygon] if isinstance(place[0], list) else place


def assert_cut_down(ours, theirs):
    """Assert that theirs is ours with numbers cut down to whole ones, in their single precision."""
    if isinstance(ours, float):
        assert theirs in (int(ours), int(ours * (1 + 1e-6)), int(ours * (1 - 1e-6)))
    elif isinstance(ours, str):
        assert ours == theirs
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_cut_down(ours[key], theirs[key])
    else:
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_cut_down(one, other)


@pytest.mark.parametrize("answers", OutputType)
def test_reads_ascii_as_transformers_does(processor, answers):
    @fuzz
    @given(texts(answers), sizes)
    def check(text, size):
        assert_cut_down(our_value(answers, text, size, banned=BANNED), their_answer(processor, answers, text, size))

    check()


@pytest.mark.parametrize("answers", OutputType)
def test_transformers_reads_what_we_write(processor, answers):
    @fuzz
    @given(sized_values(answers))
    def check(given):
        value, size = given
        columns = {} if isinstance(value, str) else value
        for key in (key for key in columns if "labels" in key):
            columns[key] = [re.sub(r"[^ -~]|<", "", label).strip() for label in columns[key]]
        if answers is OutputType.BOXES_OR_POLYGONS and columns["polygons"]:
            columns |= {"bboxes": [], "bboxes_labels": []}
        text = value if answers is OutputType.TEXT else encode(answers, Answer.from_dict(columns, answers), size)
        theirs = processor.post_process_generation(text, task=TOKENS[answers], image_size=size)[TOKENS[answers]]
        assert_cut_down(our_value(answers, text, size, banned=BANNED), theirs)

    check()


def test_reads_the_answer_microsofts_base_gives():
    text = f"</s><s>car{locs(53, 333, 933, 774)}wheel{locs(704, 576, 866, 772, 149, 584, 310, 773)}</s><pad><pad>"
    answer = decode(find_task("od"), text, (640, 480))
    assert answer.labels == ["car", "wheel", "wheel"]
    assert answer.bboxes[0] == pytest.approx([34.24, 160.08, 597.44, 371.76])


# The stated differences


def both(processor, answers, text):
    token = TOKENS[answers]
    theirs = processor.post_process_generation(text, task=token, image_size=THOUSAND)[token]
    return our_value(answers, text, THOUSAND), theirs


@pytest.mark.parametrize(
    ("answers", "text", "ours", "theirs"),
    [
        (OutputType.BOXES, f"naïve 猫{BOX}", ["naïve 猫"], ["nave "]),
        (OutputType.PHRASES, f"a\nb{BOX}", ["a\nb"], []),
        (OutputType.QUADS, f"a\nb{BOX * 2}", ["a\nb"], ["b"]),
        (OutputType.BOXES, f"a < b{BOX}", ["a < b"], ["b"]),
        (OutputType.BOXES, f"<od>cat{BOX}</od>", ["cat"], ["od>cat"]),
        (OutputType.BOXES, f"cat<and>dog{BOX}", ["dog"], ["and>dog"]),
        (OutputType.BOXES, f"cat<sep>{BOX}", [], ["sep>"]),
        (OutputType.BOXES, f"<loc_5>{BOX}a{BOX}", ["a"], ["loc_5>", "a"]),
        (OutputType.BOXES, f"a{BOX} {BOX}", ["a", ""], ["a", ""]),  # no difference
        (OutputType.QUADS, f"a{BOX * 2}<loc_5>b{BOX * 2}", ["a", "b"], ["a", "<loc_5>b"]),
        (OutputType.QUADS, f"a{BOX * 4}<loc_5>", ["a"], ["a", "<loc_1>"]),
        (OutputType.POLYGONS, f"<sep>{BOX}", [""], ["<sep>"]),
        (OutputType.PHRASES, f"it{BOX}", ["it"], []),
    ],
)
def test_labels_differ_from_transformers_on_purpose(processor, answers, text, ours, theirs):
    answer, their_answer = both(processor, answers, text)
    assert answer["labels"] == ours
    assert their_answer["labels"] == theirs


def test_numbers_differ_from_transformers_on_purpose(processor):
    answer, theirs = both(processor, OutputType.REGIONS, "<loc_0><loc_7><loc_1000><loc_0012>")
    assert answer["bboxes"] == [[0.5, 7.5, 999.5, 12.5]]
    assert theirs["bboxes"] == [[0, 7, 1000, 12]]


def test_boxes_beside_polygons_stay_boxes(processor):
    answer, theirs = both(processor, OutputType.BOXES_OR_POLYGONS, f"a{BOX}b<poly>{BOX}</poly>")
    assert (answer["bboxes_labels"], answer["polygons_labels"]) == (["a"], ["b"])
    assert (theirs["bboxes_labels"], theirs["polygons_labels"]) == ([], ["a", "b"])


def test_polygons_without_a_point_are_dropped(processor):
    text = f"<poly>{BOX}<sep><loc_1></poly>"
    answer, theirs = both(processor, OutputType.POLYGONS, text)
    assert answer["polygons"] == [[[1.5, 2.5, 3.5, 4.5]]]
    assert theirs["polygons"] == [[[1, 2, 3, 4], []]]


def test_padding_is_stripped_from_text(processor):
    answer, theirs = both(processor, OutputType.TEXT, "</s><s>a cat </s><pad><pad>")
    assert (answer, theirs) == ("a cat", "a cat <pad><pad>")
