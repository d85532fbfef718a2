import math
from collections.abc import Iterator

import pytest
import torch

from florence2.data.sample import Prediction, Sample
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import UserError
from florence2.model.tasks import OutputType, find_task
from tests.engine.images import image, missing, samples
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(0)


def answers(tiny, asked, batch_size=8, **generation) -> list[Prediction]:
    settings = EngineConfig(generation=GenerationConfig(**{"max_length": 12} | generation), batch_size=batch_size)
    with GenerateEngine(*tiny, settings) as reference:
        return list(reference.run(asked))


def by_hand(tiny, sample: Sample, **search) -> list[int]:
    """Ask transformers alone, one picture at a time, as its documentation says."""
    model, processor = tiny
    task = find_task(sample.task)
    inputs = processor(images=sample.image, text=task.token, return_tensors="pt")
    ngram = 3 if task.output_type is OutputType.TEXT and not task.is_custom else 0
    return model.generate(**inputs, no_repeat_ngram_size=ngram, max_new_tokens=14, **search)[0].tolist()


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_mixed_batch_says_what_transformers_says_one_by_one(tiny, num_beams: int):
    asked = samples(8)
    found = answers(tiny, asked, num_beams=num_beams)
    for sample, prediction in zip(asked, found, strict=True):
        ids = by_hand(tiny, sample, num_beams=num_beams, early_stopping=num_beams > 1)
        assert prediction.file_name == sample.id
        assert prediction.text == tiny[1].decode(ids, skip_special_tokens=False).replace("<s>", "").replace("</s>", "")
        assert prediction.num_tokens == sum(token not in (0, 1, 2) for token in ids)
    assert len({prediction.num_tokens for prediction in found}) > 1


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 1.5, "top_p": 0.95}])
def test_the_batch_changes_no_answer(tiny, search: dict):
    asked = samples(7)
    together, alone = answers(tiny, asked, **search), answers(tiny, asked, batch_size=1, **search)
    assert [p.text for p in together] == [p.text for p in alone]
    assert [p.score for p in together] == pytest.approx([p.score for p in alone], rel=1e-4)
    backwards = answers(tiny, asked[::-1], batch_size=3, **search)
    assert [p.text for p in backwards[::-1]] == [p.text for p in together]


def test_samples_draw_by_seed(tiny):
    asked = samples(6, ("what is this?",))
    first, again, other = (answers(tiny, asked, do_sample=True, seed=seed) for seed in (1, 1, 2))
    assert [p.text for p in first] == [p.text for p in again]
    assert [p.text for p in first] != [p.text for p in other]


def test_an_image_that_is_not_there_stops_nothing(tiny):
    asked = [samples(1)[0], missing(), samples(1, first=1)[0]]
    found = answers(tiny, asked)
    assert [p.file_name for p in found] == ["0.png", "gone.jpg", "1.png"]
    assert [p.error for p in found] == [None, "/nowhere/gone.jpg does not exist", None]
    assert (found[1].score, found[1].text) == (None, "")


def test_a_prompt_that_cannot_be_asked_is_its_own_error(tiny):
    asked = [Sample("a.png", image(0), "w" * 300), Sample("b.png", image(0), "od", input="dogs"), *samples(1)]
    found = answers(tiny, asked)
    assert "300 tokens" in found[0].error
    assert "takes no input" in found[1].error
    assert found[2].error is None


def test_an_error_of_the_source_is_not_swallowed(tiny):
    def broken() -> Iterator[Sample]:
        yield samples(1)[0]
        raise UserError("the list ends in the middle of a line")

    with pytest.raises(UserError, match="middle of a line"):
        answers(tiny, broken())


def test_length_is_cut_to_the_positions_of_the_model(tiny):
    longest = answers(tiny, samples(2, ("what is this?",)), max_length=100_000, min_length=90_000)
    assert [p.num_tokens for p in longest] == [126, 126]  # 128 positions hold start, bos and these


def test_lengths_count_caption_tokens(tiny):
    for found in answers(tiny, samples(4), max_length=9, min_length=9):
        assert found.num_tokens == 9


def test_several_answers_to_one_question(tiny):
    found = answers(tiny, samples(2), num_beams=3, num_return_sequences=2)
    assert [p.file_name for p in found] == ["0.png", "1.png"]
    for first in found:
        [second] = first.alternatives
        assert second.text != first.text
        assert (second.key, second.alternatives) == (first.key, ())
    assert [p.text for p in found] == [p.text for p in answers(tiny, samples(2), num_beams=3)]


def test_score_is_the_mean_probability_of_what_the_model_chose(tiny):
    model, processor = tiny
    sample = samples(1)[0]
    [found] = answers(tiny, [sample], max_length=6, min_length=6)
    inputs = processor(images=sample.image, text="<CAPTION>", return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=8, min_length=8, num_beams=1, early_stopping=False)
    with torch.no_grad():
        logprobs = model(**inputs, decoder_input_ids=said[:, :-1]).logits.log_softmax(-1)[0]
    chosen = [logprobs[n, said[0, n + 1]].item() for n in range(1, 7)]  # neither bos nor the forced eos
    assert said.shape == (1, 9)
    assert found.score == pytest.approx(math.exp(sum(chosen) / 6), rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"top_p": 1.5},
        {"num_beams": 0},
        {"min_length": 300},
        {"num_return_sequences": 2},
        {"repetition_penalty": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict):
    with pytest.raises(UserError, match=next(iter(wrong))):
        GenerationConfig(**wrong)
