import math

import pytest

from florence2.data.sample import Sample
from florence2.engine.decoding.location_mass import RADII
from florence2.engine.decoding.outputs import (
    NOT_FINITE,
    TOLERANCE,
    CaptionToken,
    CompletionOutput,
    ObjectScorer,
    to_prediction,
)
from florence2.engine.generation_config import GenerationConfig, ModelGenerationConfig
from florence2.engine.requests import ImageInputs, Request
from florence2.model.geometry import GeometryKind
from florence2.model.location_grammar import LocatedObject
from florence2.model.processing import Preprocessor
from florence2.model.storage.score_calibration import ScoreCalibration, TaskCalibration
from florence2.model.tasks import find_task
from tests.engine.images import image
from tests.tiny import tiny_model

CAT = {"c": 0.9, "at": 0.4, "<loc_1>": 0.5, "<loc_2>": 0.5, "<loc_3>": 0.2, "<loc_4>": 0.2}
TWO = {"<loc_5>": 0.3, "<loc_6>": 0.3, "<loc_7>": 0.3, "<loc_8>": 0.3}


@pytest.fixture(scope="module")
def tiny():
    model, processor = tiny_model()
    return Preprocessor.from_processor(processor), ModelGenerationConfig.from_model(model)


def completion(ids: list[int], logprobs: list[float]) -> CompletionOutput:
    """Make a completion without any probability near its location tokens."""
    return CompletionOutput(ids, logprobs, [[math.exp(logprob)] * len(RADII) for logprob in logprobs])


def score_of(tiny, task: str, *parts: dict[str, float]) -> dict:
    """Decode tokens of these probabilities, and return the scores of the prediction."""
    preprocessor, model_config = tiny
    text = "".join(token for part in parts for token in part)
    probabilities = [1.0, *(probability for part in parts for probability in part.values()), 0.8]
    ids = preprocessor.target_ids(text)
    assert len(ids) == len(probabilities), "each key is one token"
    row = find_task(task)
    request = Request(
        Sample("a", image(0), task),
        row,
        [],
        ImageInputs(None, (100, 100)),
        model_config.length_limits(row, GenerationConfig()),
        GenerationConfig(),
    )
    prediction = to_prediction(
        preprocessor,
        model_config,
        request,
        [completion(ids, [math.log(probability) for probability in probabilities])],
    )
    assert prediction.text == text
    return {key: value for key, value in prediction.answer.to_dict().items() if "scores" in key}


def test_label_and_location_of_an_object_count_alike(tiny):
    label, location = math.sqrt(0.9 * 0.4), math.sqrt(0.5 * 0.2)
    for task in ("od", "caption_to_phrase_grounding"):
        scores = score_of(tiny, task, CAT, TWO, {"u": 0.25}, {f"<loc_{n}>": 0.04 for n in (9, 10, 11, 12)})["scores"]
        assert scores == pytest.approx([math.sqrt(label * location), math.sqrt(label * 0.3), 0.1])


def test_object_without_label_is_scored_by_its_location(tiny):
    assert score_of(tiny, "region_proposal", TWO)["scores"] == pytest.approx([0.3])
    assert score_of(tiny, "region_to_segmentation", TWO)["scores"] == pytest.approx([0.3])


def test_boxes_and_polygons_have_separate_scores(tiny):
    mask = {"o": 0.5, "<poly>": 0.1, "<loc_9>": 0.2, "<loc_8>": 0.2, "<sep>": 0.2, "<loc_7>": 0.2, "<loc_6>": 0.2}
    scores = score_of(tiny, "open_vocabulary_detection", CAT, mask, {"</poly>": 0.1})
    assert scores["bboxes_scores"] == pytest.approx([math.sqrt(math.sqrt(0.36) * math.sqrt(0.1))])
    assert scores["polygons_scores"] == pytest.approx([math.sqrt(0.5 * 0.2)])


def test_character_of_several_tokens_is_scored_by_all_of_them(tiny):
    preprocessor, model_config = tiny
    ids = preprocessor.target_ids("é<loc_1><loc_2><loc_3><loc_4>")
    probabilities = [1, 0.9, 0.4, 1, 1, 1, 1, 1]
    row = find_task("od")
    request = Request(
        Sample("a", image(0), "od"),
        row,
        [],
        ImageInputs(None, (9, 9)),
        model_config.length_limits(row, GenerationConfig()),
        GenerationConfig(),
    )
    prediction = to_prediction(
        preprocessor,
        model_config,
        request,
        [completion(ids, [math.log(probability) for probability in probabilities])],
    )
    assert prediction.answer.labels == ["é"]
    assert prediction.answer.scores == pytest.approx([math.sqrt(0.6)])


@pytest.mark.parametrize("logprobs", [[(0, 0, -1), (0, math.nan, -1)], [(0, -1, math.nan), (0, 0, -1)]])
def test_prediction_with_a_sequence_that_is_not_finite_is_an_error(tiny, logprobs: list[tuple[float, ...]]):
    preprocessor, model_config = tiny
    ids, row = preprocessor.target_ids("a"), find_task("caption")
    limits = model_config.length_limits(row, GenerationConfig())
    request = Request(Sample("a", image(0), "caption"), row, [], ImageInputs(None, (9, 9)), limits, GenerationConfig())
    completions = [completion(ids, list(each)) for each in logprobs]
    prediction = to_prediction(preprocessor, model_config, request, completions)
    assert (prediction.error, prediction.alternatives) == (NOT_FINITE, ())


def token(logprob: float, *masses: float) -> CaptionToken:
    return CaptionToken(0, 1, math.log(logprob), masses)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (0, 0.1),  # a point has no tolerance
        (12, 0.1 + 1.5 / 3 * 0.4),  # an eighth of 12 bins is half of the first radius
        (24, 0.5),
        (52, 0.5 + 3.5 / 7 * 0.4),
        (80, 0.9),
        (800, 0.9),  # at most 10 bins
    ],
)
def test_location_counts_within_an_eighth_of_the_side(side: int, expected: float):
    assert math.exp(token(0.1, 0.5, 0.9).log_mass(side * TOLERANCE)) == pytest.approx(expected)


def test_each_axis_has_a_tolerance_of_its_own():
    tokens = [CaptionToken(i, i + 1, math.log(0.1), (0.5, 0.9)) for i in range(4)]
    wide = LocatedObject(GeometryKind.BBOXES, "", ((0, 0, 80, 24),), (0, 0), (0, 4))
    assert ObjectScorer(tokens, "od").score(wide) == pytest.approx(math.sqrt(0.9 * 0.5))


def test_a_calibration_maps_the_score_of_its_task():
    tokens = [CaptionToken(i, i + 1, math.log(0.5), (0.5, 0.5)) for i in range(4)]
    box = LocatedObject(GeometryKind.BBOXES, "", ((0, 0, 160, 160),), (0, 0), (0, 4))
    calibration = ScoreCalibration({"od": TaskCalibration(scale=9, bias=2)})
    assert ObjectScorer(tokens, "od", calibration).score(box) == pytest.approx(1 / (1 + math.exp(-2)))
    assert ObjectScorer(tokens, "region_proposal", calibration).score(box) == pytest.approx(0.5)
