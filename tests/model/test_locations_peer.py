"""The codec against transformers' own parsers: equal except for the differences that `locations.py` lists."""

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
from tests.strategies import BOX, THOUSAND, fuzz, location_token, locs, markers, sized_values, sizes
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
def test_bin_equals_transformers_off_the_edges(processor, value: float, size: int):
    position = value * 1000 / size
    assume(abs(position - round(position)) > 1e-6)
    theirs = processor.post_processor.quantize(torch.tensor([[value, value]], dtype=torch.float64), (size, size))
    assert theirs.tolist() == [[to_bin(value, size)] * 2]


label_text = st.text(string.printable.replace("<", "").replace("\n", "").replace("\r", "")[:94], min_size=1, max_size=8)
label_text = (label_text | st.sampled_from(["it", "the image", "stop-sign", "a, 2"])).filter(str.strip)
sequences = {
    OutputType.TEXT: label_text | location_token | st.sampled_from(["<s>", "</s>", "<sep>"]),
    OutputType.BOXES: label_text
    | location_token
    | markers
    | st.lists(location_token, min_size=3, max_size=9).map("".join),
    OutputType.REGIONS: label_text
    | location_token
    | markers
    | st.lists(location_token, min_size=3).map("".join)
    | st.just("<sep>"),
    OutputType.QUADS: label_text
    | location_token
    | markers
    | st.lists(location_token, min_size=7, max_size=18).map("".join),
    OutputType.POLYGONS: label_text
    | markers
    | st.sampled_from(["<sep>", "<poly>", "</poly>"])
    | st.lists(location_token, min_size=1, max_size=9).map("".join),
}
sequences[OutputType.PHRASES] = sequences[OutputType.BOXES]


def texts(output_type: OutputType):
    """Mostly malformed texts; open-vocabulary ones have boxes or polygons only, as transformers requires."""
    if output_type is not OutputType.BOXES_OR_POLYGONS:
        return st.lists(sequences[output_type]).map("".join)
    inside = st.sampled_from(["<sep>", "<poly>", "</poly>", "</poly><poly>"]) | st.lists(location_token).map("".join)
    masks = st.tuples(label_text, st.just("<poly>"), st.lists(inside, max_size=6).map("".join)).map("".join)
    return texts(OutputType.BOXES) | st.lists(masks).map("".join)


def their_answer(processor, output_type: OutputType, text: str, size):
    """Return transformers' answer without the differences 4 and 8 of the module's list."""
    token = TOKENS[output_type]
    value = processor.post_process_generation(text, task=token, image_size=size)[token]
    for kind in [] if output_type is OutputType.TEXT else ["bboxes", "quad_boxes", "polygons"]:
        key = f"{kind}_labels" if f"{kind}_labels" in value else "labels"
        if kind in value:
            pairs = [
                (normalize_label(label), normalize_position(position))
                for label, position in zip(value[key], value[kind], strict=True)
            ]
            if output_type is OutputType.POLYGONS:
                pairs = [
                    (normalize_label(label), normalize_position(value[kind][i])) for i, label in enumerate(value[key])
                ]
            if output_type is OutputType.POLYGONS:
                pairs = [("", position) for _, position in pairs]
            dropped = [None, *BANNED] if output_type is OutputType.PHRASES else [None]
            pairs = [(label, position) for label, position in pairs if label not in dropped and position]
            value |= {key: [label for label, _ in pairs], kind: [position for _, position in pairs]}
    return value


def our_value(output_type: OutputType, text: str, size, banned=()):
    if output_type is OutputType.TEXT:
        return clean_text(text)
    return decode(output_type, text, size, banned=banned).to_dict()


def normalize_label(label: str) -> str | None:
    """Return the text after the last special token or part of one; None where there is none."""
    token, label = re.fullmatch(r"(.*(?:loc_\d+|sep|/?poly)>)?(.*)", label).groups()
    return None if token and not label else label.strip()


def normalize_position(position: list) -> list:
    return [polygon for polygon in position if polygon] if isinstance(position[0], list) else position


def assert_truncated(ours, theirs):
    """Assert that theirs equals ours with numbers truncated to integers, in single precision."""
    if isinstance(ours, float):
        assert theirs in (int(ours), int(ours * (1 + 1e-6)), int(ours * (1 - 1e-6)))
    elif isinstance(ours, str):
        assert ours == theirs
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_truncated(ours[key], theirs[key])
    else:
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_truncated(one, other)


@pytest.mark.parametrize("output_type", OutputType)
def test_decoding_of_ascii_equals_transformers(processor, output_type):
    @fuzz
    @given(texts(output_type), sizes)
    def check(text, size):
        assert_truncated(
            our_value(output_type, text, size, banned=BANNED), their_answer(processor, output_type, text, size)
        )

    check()


@pytest.mark.parametrize("output_type", OutputType)
def test_transformers_decodes_encoded_answers(processor, output_type):
    @fuzz
    @given(sized_values(output_type))
    def check(sized):
        value, size = sized
        columns = {} if isinstance(value, str) else value
        for key in (key for key in columns if "labels" in key):
            columns[key] = [re.sub(r"[^ -~]|<", "", label).strip() for label in columns[key]]
        if output_type is OutputType.BOXES_OR_POLYGONS and columns["polygons"]:
            columns |= {"bboxes": [], "bboxes_labels": []}
        text = (
            value
            if output_type is OutputType.TEXT
            else encode(output_type, Answer.from_dict(columns, output_type), size)
        )
        theirs = processor.post_process_generation(text, task=TOKENS[output_type], image_size=size)[TOKENS[output_type]]
        assert_truncated(our_value(output_type, text, size, banned=BANNED), theirs)

    check()


def test_answer_of_microsofts_base_decodes():
    text = f"</s><s>car{locs(53, 333, 933, 774)}wheel{locs(704, 576, 866, 772, 149, 584, 310, 773)}</s><pad><pad>"
    answer = decode(find_task("od"), text, (640, 480))
    assert answer.labels == ["car", "wheel", "wheel"]
    assert answer.bboxes[0] == pytest.approx([34.24, 160.08, 597.44, 371.76])


# The stated differences


def decode_both(processor, output_type, text):
    token = TOKENS[output_type]
    theirs = processor.post_process_generation(text, task=token, image_size=THOUSAND)[token]
    return our_value(output_type, text, THOUSAND), theirs


@pytest.mark.parametrize(
    ("output_type", "text", "ours", "theirs"),
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
def test_labels_differ_from_transformers_on_purpose(processor, output_type, text, ours, theirs):
    answer, their_answer = decode_both(processor, output_type, text)
    assert answer["labels"] == ours
    assert their_answer["labels"] == theirs


def test_numbers_differ_from_transformers_on_purpose(processor):
    answer, theirs = decode_both(processor, OutputType.REGIONS, "<loc_0><loc_7><loc_1000><loc_0012>")
    assert answer["bboxes"] == [[0.5, 7.5, 999.5, 12.5]]
    assert theirs["bboxes"] == [[0, 7, 1000, 12]]


def test_boxes_beside_polygons_remain_boxes(processor):
    answer, theirs = decode_both(processor, OutputType.BOXES_OR_POLYGONS, f"a{BOX}b<poly>{BOX}</poly>")
    assert (answer["bboxes_labels"], answer["polygons_labels"]) == (["a"], ["b"])
    assert (theirs["bboxes_labels"], theirs["polygons_labels"]) == ([], ["a", "b"])


def test_polygons_without_a_point_are_dropped(processor):
    text = f"<poly>{BOX}<sep><loc_1></poly>"
    answer, theirs = decode_both(processor, OutputType.POLYGONS, text)
    assert answer["polygons"] == [[[1.5, 2.5, 3.5, 4.5]]]
    assert theirs["polygons"] == [[[1, 2, 3, 4], []]]


def test_padding_is_removed_from_text(processor):
    answer, theirs = decode_both(processor, OutputType.TEXT, "</s><s>a cat </s><pad><pad>")
    assert (answer, theirs) == ("a cat", "a cat <pad><pad>")
