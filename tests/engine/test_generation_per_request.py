"""Requests with configs of their own: together in one batch they get what each gets alone."""

import itertools

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.requests import EngineInput
from florence2.errors import OptionError
from tests.engine.images import samples
from tests.engine.test_engine import late_engine, predict_all, texts
from tests.tiny import tiny_model

GREEDY = {
    "greedy": {},
    "short": {"max_length": 5},
    "long": {"min_length": 12},
    "no bigrams": {"no_repeat_ngram_size": 2},
    "penalty": {"repetition_penalty": 1.7},
}
SAMPLING = {
    "sampling": {"do_sample": True, "temperature": 1.3},
    "another seed": {"do_sample": True, "temperature": 1.3, "seed": 1},
    "top-k": {"do_sample": True, "top_k": 20},
    "top-p": {"do_sample": True, "top_p": 0.8},
    "three samples": {"do_sample": True, "num_return_sequences": 3},
}
BEAMS = {
    "3 beams": {"num_beams": 3},
    "2 beams": {"num_beams": 2, "num_return_sequences": 2},
    "short beams": {"num_beams": 3, "length_penalty": 0.3, "max_length": 7},
    "never early": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0, "num_return_sequences": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True, "temperature": 1.2},
}


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(1)


def config(**generation) -> GenerationConfig:
    return GenerationConfig(**{"max_length": 20} | generation)


def mixed(requests: list[Sample], configs: list[GenerationConfig]) -> list[EngineInput]:
    """Let every config meet every other one: sample n of config m is beside those of the others."""
    return [EngineInput(sample, each) for sample, each in zip(requests, itertools.cycle(configs), strict=False)]


def by_name(predictions) -> list[Prediction]:
    return sorted(predictions, key=lambda prediction: prediction.file_name)


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize(
    ("num_beams", "searches"),
    [(1, GREEDY), (3, GREEDY), (3, BEAMS), (3, SAMPLING), (3, {**GREEDY, **SAMPLING, **BEAMS})],
    ids=["greedy", "greedy beside beams", "beams", "sampling", "all"],
)
def test_mixed_requests_equal_each_config_alone(tiny, num_beams: int, searches: dict, interval: int):
    configs = [config(**search) for search in searches.values()]
    requests = samples(2 * len(configs) + 1)
    with late_engine(tiny, 4, interval, config(num_beams=num_beams)) as engine:
        together = by_name(engine.run(mixed(requests, configs)))
    for number, (name, search) in enumerate(searches.items()):
        mine = {sample.id for sample in requests[number :: len(configs)]}
        own = [sample for sample in requests if sample.id in mine]
        expected = texts(predict_all(tiny, own, slots=2, **search))
        assert texts([each for each in together if each.file_name in mine]) == expected, name
        if not search.get("do_sample"):
            assert texts(predict_all(tiny, own, GenerateEngine, 1, **search)) == expected, name


def test_generate_engine_takes_a_config_per_request(tiny):
    searches = GREEDY | {"3 beams": BEAMS["3 beams"], "sampling": SAMPLING["sampling"]}
    configs, requests = [config(**search) for search in searches.values()], samples(8)
    with GenerateEngine(*tiny, EngineConfig(batch_size=8)) as engine:
        together = list(engine.run(mixed(requests, configs)))
    for sample, prediction, search in zip(requests, together, itertools.cycle(searches.values()), strict=False):
        assert texts([prediction]) == texts(predict_all(tiny, [sample], GenerateEngine, 1, **search))


@pytest.mark.parametrize("kind", [Engine, GenerateEngine])
def test_config_of_a_call_replaces_the_default(tiny, kind):
    with kind(*tiny, EngineConfig(config(num_beams=3), batch_size=3)) as engine:
        first = by_name(engine.run(samples(5), config(max_length=6)))
        second = by_name(engine.run(samples(5)))
    assert texts(first) == texts(predict_all(tiny, samples(5), max_length=6))
    assert texts(second) == texts(predict_all(tiny, samples(5), num_beams=3))


def test_equal_searches_are_shared_and_idle_searches_are_dropped(tiny, monkeypatch):
    monkeypatch.setattr("florence2.engine.engine.MAX_SEARCHES", 2)
    with Engine(*tiny, EngineConfig(config(), batch_size=2)) as engine:
        list(engine.run(mixed(samples(4), [config(), config(max_length=9, min_length=3, seed=4), config(top_p=0.5)])))
        assert len(engine.searches) == 1, "lengths, seeds and top_p without sampling need no search of their own"
        for penalty in (1.1, 1.2, 1.3, 1.4, 1.5):
            found = by_name(engine.run(samples(2), config(repetition_penalty=penalty)))
            assert texts(found) == texts(predict_all(tiny, samples(2), repetition_penalty=penalty))
        assert len(engine.searches) <= 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_beams": 4}, "`num_beams` 4 of a request is above the 2 of the engine"),
        ({"do_sample": True, "num_return_sequences": 3}, "`num_return_sequences` 3 of a request"),
        ({"max_length": 21}, "`max_length` 21 of a request is above the 20 of the engine"),
    ],
)
def test_request_that_needs_more_than_a_slot_is_refused(tiny, wrong: dict, message: str):
    with Engine(*tiny, EngineConfig(config(num_beams=2), batch_size=2)) as engine:
        with pytest.raises(OptionError, match=message):
            engine.run(samples(1), config(**wrong))
        first, second = by_name(engine.run(mixed(samples(2), [config(**wrong), config()])))
    assert message in first.error
    assert texts([second]) == texts(predict_all(tiny, samples(1, first=1)))
