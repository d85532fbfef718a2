import math

import pytest

from florence2.data.sample import Sample
from florence2.engine.decoding.outputs import CompletionOutput, to_prediction
from florence2.engine.generation_config import GenerationConfig, ModelGenerationConfig
from florence2.engine.requests import ImageInputs, Request
from florence2.model.processing import Preprocessor
from florence2.model.tasks import find_task
from tests.engine.images import image
from tests.tiny import tiny_model

CAT = {"c": 0.9, "at": 0.4, "<loc_1>": 0.5, "<loc_2>": 0.5, "<loc_3>": 0.2, "<loc_4>": 0.2}
TWO = {"<loc_5>": 0.3, "<loc_6>": 0.3, "<loc_7>": 0.3, "<loc_8>": 0.3}


@pytest.fixture(scope="module")
def tiny():
    model, processor = tiny_model()
    return Preprocessor.from_processor(processor), ModelGenerationConfig.from_model(model)


def score_of(tiny, task: str, *said: dict[str, float]) -> dict:
    """Read an answer that is said with these probabilities, and give its scores."""
    preprocessor, rules = tiny
    text = "".join(piece for part in said for piece in part)
    odds = [1.0, *(odd for part in said for odd in part.values()), 0.8]
    ids = preprocessor.target_ids(text)
    assert len(ids) == len(odds), "each piece is one token"
    row = find_task(task)
    question = Request(
        Sample("a", image(0), task),
        row,
        [],
        ImageInputs(None, (100, 100)),
        rules.length_limits(row, GenerationConfig()),
        GenerationConfig(),
    )
    told = to_prediction(preprocessor, rules, question, [CompletionOutput(ids, [math.log(odd) for odd in odds])])
    assert told.text == text
    return {key: value for key, value in told.answer.to_dict().items() if "scores" in key}


def test_an_object_is_scored_by_its_label_and_its_places_alike(tiny):
    label, places = math.sqrt(0.9 * 0.4), math.sqrt(0.5 * 0.2)
    for task in ("od", "caption_to_phrase_grounding"):
        found = score_of(tiny, task, CAT, TWO, {"u": 0.25}, {f"<loc_{n}>": 0.04 for n in (9, 10, 11, 12)})["scores"]
        assert found == pytest.approx([math.sqrt(label * places), math.sqrt(label * 0.3), 0.1])


def test_what_has_no_label_is_scored_by_its_places(tiny):
    assert score_of(tiny, "region_proposal", TWO)["scores"] == pytest.approx([0.3])
    assert score_of(tiny, "region_to_segmentation", TWO)["scores"] == pytest.approx([0.3])


def test_boxes_and_polygons_have_scores_each(tiny):
    mask = {"o": 0.5, "<poly>": 0.1, "<loc_9>": 0.2, "<loc_8>": 0.2, "<sep>": 0.2, "<loc_7>": 0.2, "<loc_6>": 0.2}
    found = score_of(tiny, "open_vocabulary_detection", CAT, mask, {"</poly>": 0.1})
    assert found["bboxes_scores"] == pytest.approx([math.sqrt(math.sqrt(0.36) * math.sqrt(0.1))])
    assert found["polygons_scores"] == pytest.approx([math.sqrt(0.5 * 0.2)])


def test_a_letter_of_several_tokens_is_scored_by_all(tiny):
    preprocessor, rules = tiny
    ids = preprocessor.target_ids("é<loc_1><loc_2><loc_3><loc_4>")
    odds = [1, 0.9, 0.4, 1, 1, 1, 1, 1]
    row = find_task("od")
    question = Request(
        Sample("a", image(0), "od"),
        row,
        [],
        ImageInputs(None, (9, 9)),
        rules.length_limits(row, GenerationConfig()),
        GenerationConfig(),
    )
    told = to_prediction(preprocessor, rules, question, [CompletionOutput(ids, [math.log(odd) for odd in odds])])
    assert told.answer.labels == ["é"]
    assert told.answer.scores == pytest.approx([math.sqrt(0.6)])
