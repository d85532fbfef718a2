import math
from collections.abc import Iterator

import pytest
import torch

from florence2.data.sample import Prediction, Sample
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import OptionError, UserError
from florence2.model.tasks import OutputType, find_task
from tests.engine.images import image, missing, samples
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(0)


def predict_all(tiny, requests, batch_size=8, **generation) -> list[Prediction]:
    config = EngineConfig(generation=GenerationConfig(**{"max_length": 12} | generation), batch_size=batch_size)
    with GenerateEngine(*tiny, config) as engine:
        return list(engine.run(requests))


def generate_alone(tiny, sample: Sample, **search) -> list[int]:
    """Call `generate` for one image at a time, as the documentation of transformers does."""
    model, processor = tiny
    task = find_task(sample.task)
    inputs = processor(images=sample.image, text=task.token, return_tensors="pt")
    ngram = 3 if task.output_type is OutputType.TEXT and not task.is_custom else 0
    return model.generate(**inputs, no_repeat_ngram_size=ngram, max_new_tokens=14, **search)[0].tolist()


@pytest.mark.parametrize("num_beams", [1, 3])
def test_mixed_batch_equals_generate_one_by_one(tiny, num_beams: int):
    requests = samples(8)
    predictions = predict_all(tiny, requests, num_beams=num_beams)
    for sample, prediction in zip(requests, predictions, strict=True):
        ids = generate_alone(tiny, sample, num_beams=num_beams, early_stopping=num_beams > 1)
        assert prediction.file_name == sample.id
        assert prediction.text == tiny[1].decode(ids, skip_special_tokens=False).replace("<s>", "").replace("</s>", "")
        assert prediction.num_tokens == sum(token not in (0, 1, 2) for token in ids)
    assert len({prediction.num_tokens for prediction in predictions}) > 1


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 1.5, "top_p": 0.95}])
def test_batch_size_changes_no_prediction(tiny, search: dict):
    requests = samples(7)
    together, alone = predict_all(tiny, requests, **search), predict_all(tiny, requests, batch_size=1, **search)
    assert [p.text for p in together] == [p.text for p in alone]
    assert [p.score for p in together] == pytest.approx([p.score for p in alone], rel=1e-4)
    backwards = predict_all(tiny, requests[::-1], batch_size=3, **search)
    assert [p.text for p in backwards[::-1]] == [p.text for p in together]


def test_seed_determines_samples(tiny):
    requests = samples(6, ("what is this?",))
    first, again, other = (predict_all(tiny, requests, do_sample=True, seed=seed) for seed in (1, 1, 2))
    assert [p.text for p in first] == [p.text for p in again]
    assert [p.text for p in first] != [p.text for p in other]


def test_missing_image_gives_a_prediction_with_error(tiny):
    requests = [samples(1)[0], missing(), samples(1, first=1)[0]]
    predictions = predict_all(tiny, requests)
    assert [p.file_name for p in predictions] == ["0.png", "gone.jpg", "1.png"]
    assert [p.error for p in predictions] == [None, "/nowhere/gone.jpg does not exist", None]
    assert (predictions[1].score, predictions[1].text) == (None, "")


def test_refused_prompt_gives_a_prediction_with_error(tiny):
    requests = [Sample("a.png", image(0), "w" * 300), Sample("b.png", image(0), "od", input="dogs"), *samples(1)]
    predictions = predict_all(tiny, requests)
    assert "300 tokens" in predictions[0].error
    assert "takes no input" in predictions[1].error
    assert predictions[2].error is None


def test_error_of_the_iterable_is_raised(tiny):
    def broken() -> Iterator[Sample]:
        yield samples(1)[0]
        raise UserError("the list ends in the middle of a line")

    with pytest.raises(UserError, match="middle of a line"):
        predict_all(tiny, broken())


def test_max_length_is_cut_to_the_positions_of_the_model(tiny):
    longest = predict_all(tiny, samples(2, ("what is this?",)), max_length=100_000, min_length=90_000)
    assert [p.num_tokens for p in longest] == [126, 126]  # 128 positions hold start, bos and these


def test_min_and_max_length_count_caption_tokens(tiny):
    for prediction in predict_all(tiny, samples(4), max_length=9, min_length=9):
        assert prediction.num_tokens == 9


def test_num_return_sequences_gives_alternatives(tiny):
    predictions = predict_all(tiny, samples(2), num_beams=3, num_return_sequences=2)
    assert [p.file_name for p in predictions] == ["0.png", "1.png"]
    for first in predictions:
        [second] = first.alternatives
        assert second.text != first.text
        assert (second.key, second.alternatives) == (first.key, ())
    assert [p.text for p in predictions] == [p.text for p in predict_all(tiny, samples(2), num_beams=3)]


def test_score_is_the_mean_probability_of_unforced_tokens(tiny):
    model, processor = tiny
    sample = samples(1)[0]
    [prediction] = predict_all(tiny, [sample], max_length=6, min_length=6)
    inputs = processor(images=sample.image, text="<CAPTION>", return_tensors="pt")
    sequences = model.generate(**inputs, max_new_tokens=8, min_length=8, num_beams=1, early_stopping=False)
    with torch.no_grad():
        logprobs = model(**inputs, decoder_input_ids=sequences[:, :-1]).logits.log_softmax(-1)[0]
    unforced = [logprobs[n, sequences[0, n + 1]].item() for n in range(1, 7)]  # neither bos nor the forced eos
    assert sequences.shape == (1, 9)
    assert prediction.score == pytest.approx(math.exp(sum(unforced) / 6), rel=1e-4)


@pytest.mark.parametrize(
    "invalid",
    [
        {"temperature": 0.0},
        {"top_p": 1.5},
        {"num_beams": 0},
        {"min_length": 300},
        {"num_return_sequences": 2},
        {"repetition_penalty": 0.0},
    ],
)
def test_invalid_values_are_refused_by_name(invalid: dict):
    with pytest.raises(OptionError, match=next(iter(invalid))):
        GenerationConfig(**invalid)


def test_closed_engine_refuses_to_run(tiny):
    with GenerateEngine(*tiny) as engine:
        pass
    with pytest.raises(UserError, match="the engine is closed"):
        engine.run(samples(1))
