import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from florence2.data.sample import Prediction, Sample
from florence2.engine.decoding.completion_poller import CompletionPoller
from florence2.engine.decoding.kv_cache import max_slots_for_memory
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.scheduler import Scheduler
from florence2.errors import UserError
from tests.engine.images import image, missing, samples
from tests.tiny import tiny_model

SEARCHES = {
    "greedy": {},
    "long enough": {"min_length": 5},
    "no repeats": {"repetition_penalty": 1.7},
    "2 beams, short": {"num_beams": 2, "length_penalty": 0.3},
    "3 beams": {"num_beams": 3},
    "3 beams, never early": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0, "min_length": 4},
    "3 beams, no repeats": {"num_beams": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "5 beams": {"num_beams": 5, "early_stopping": False},
    "2 beams, early by a guess": {"num_beams": 2, "early_stopping": False, "length_penalty": 3.0},
    "4 beams, 3 answers": {"num_beams": 4, "num_return_sequences": 3},
}


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(1)


def late_engine(tiny, slots: int | None, interval: int, generation: GenerationConfig) -> Engine:
    """Create an engine; with an interval above 1 it works as on a GPU: static shapes, batches, delayed polling."""
    engine = Engine(*tiny, EngineConfig(generation=generation, batch_size=slots))
    if interval > 1:
        engine.poller, engine.encoder.batch_size = CompletionPoller(interval), 3
        engine.scheduler = Scheduler(engine.stats.slots, static_shapes=True)
    return engine


def answers(tiny, asked, kind=Engine, slots: int | None = 3, late: int = 1, **generation) -> list[Prediction]:
    """Answer all samples, and give the predictions in the order of the samples."""
    config = GenerationConfig(**{"max_length": 20} | generation)
    if kind is Engine:
        engine = late_engine(tiny, slots, late, config)
    else:
        engine = kind(*tiny, EngineConfig(generation=config, batch_size=slots))
    with engine:
        return sorted(engine.run(asked), key=lambda prediction: prediction.file_name)


def texts(predictions: list[Prediction]) -> list[tuple[str, str, str | None]]:
    return [(each.file_name, each.text, each.error) for p in predictions for each in (p, *p.alternatives)]


@pytest.mark.parametrize("name", SEARCHES)
def test_the_engine_says_what_the_reference_says(tiny, name: str):
    asked = [*samples(9), missing(), *samples(2, first=9)]
    wanted = answers(tiny, asked, GenerateEngine, 8, **SEARCHES[name])
    assert len({len(p.text) for p in wanted}) > 3
    for slots, order in ((1, asked), (3, asked[::-1]), (16, asked[5:] + asked[:5])):
        found = answers(tiny, order, slots=slots, **SEARCHES[name])
        assert texts(found) == texts(wanted)
        assert [p.num_tokens for p in found] == [p.num_tokens for p in wanted]
        assert [p.score or 0 for p in found] == pytest.approx([p.score or 0 for p in wanted], rel=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_checkpoint_that_forces_nothing(tiny, num_beams: int):
    model, processor = tiny_model(1)
    model.generation_config.forced_bos_token_id = None
    model.generation_config.forced_eos_token_id = None
    asked, search = samples(8), {"num_beams": num_beams}
    wanted = answers((model, processor), asked, GenerateEngine, **search)
    assert texts(answers((model, processor), asked, **search)) == texts(wanted)
    assert texts(wanted) != texts(answers(tiny, asked, **search))


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}])
def test_hearing_late_of_slots_that_are_done_changes_nothing(tiny, search: dict):
    asked = samples(10)
    wanted = texts(answers(tiny, asked, **search))
    for slots in (3, 16):
        assert texts(answers(tiny, asked, slots=slots, late=4, **search)) == wanted


@pytest.mark.parametrize("search", [{"top_p": 0.9}, {"top_k": 20, "num_return_sequences": 2}, {"num_beams": 2}])
def test_sampling_does_not_depend_on_company(tiny, search: dict):
    asked, search = samples(8, ("what is this?", "od")), {"do_sample": True, "temperature": 1.2} | search
    wanted = answers(tiny, asked, slots=1, **search)
    for slots, order in ((3, asked[::-1]), (16, asked)):
        assert texts(answers(tiny, order, slots=slots, **search)) == texts(wanted)
    assert texts(answers(tiny, asked, seed=1, **search)) != texts(wanted)


def test_sampling_from_the_likeliest_token_alone_is_greedy(tiny):
    asked = samples(6)
    assert texts(answers(tiny, asked, do_sample=True, top_k=1)) == texts(answers(tiny, asked))


def test_several_questions_about_one_image_look_at_it_once(tiny):
    shared = image(0)
    asked = [Sample(f"{n}.png", shared, task) for n, task in enumerate(("od", "caption", "ocr", "what?", "why?"))]
    looked: list[int] = []
    hook = tiny[0].model.vision_tower.register_forward_hook(lambda _m, args, _o: looked.append(len(args[0])))
    try:
        found = answers(tiny, asked, slots=2)
    finally:
        hook.remove()
    assert sum(looked) == 1
    apart = [Sample(s.id, image(0), s.task) for s in asked]
    assert texts(found) == texts(answers(tiny, apart, GenerateEngine))


def asks_back(prediction: Prediction) -> list[Sample]:
    """Ask two questions for each letter of the answer's length, one of which cannot be asked."""
    words = [f"what of {prediction.text[:n]}?" for n in range(prediction.num_tokens)]
    return [Sample(prediction.file_name, image(99), task) for task in [*words, "w" * 300]]


@pytest.mark.parametrize(("kind", "late"), [(Engine, 1), (Engine, 4), (GenerateEngine, 1)])
def test_answers_lead_to_questions_about_the_image_as_it_is_open(tiny, kind, late: int):
    asked = [replace(sample, follow_up=asks_back) for sample in [*samples(5, ("caption",)), missing()]]
    looked: list[int] = []
    hook = tiny[0].model.vision_tower.register_forward_hook(lambda _m, args, _o: looked.append(len(args[0])))
    try:
        found = answers(tiny, asked, kind, slots=2, late=late, max_length=6)
    finally:
        hook.remove()
    first = [prediction for prediction in found if prediction.task == "caption"]
    assert len(first) == 6
    assert sum(p.error is not None for p in first) == 1, "what failed leads nowhere"
    alone = [Sample(s.id, s.image, q.task) for s, p in zip(asked, first, strict=False) for q in asks_back(p)][:-1]
    rest = [prediction for prediction in found if prediction.task != "caption"]
    assert set(texts(rest)) == set(texts(answers(tiny, alone, slots=2, max_length=6)))
    assert kind is GenerateEngine or sum(looked) == 5


@pytest.mark.parametrize("num_beams", [1, 3])
def test_ties_to_the_last_bit_are_broken_alike(num_beams: int):
    model, processor = tiny_model(1)
    words = model.model.language_model.shared.weight.data
    words[100:110] = words[50:60]  # ten pairs of tokens that are equally likely, always
    asked, search = samples(8), {"num_beams": num_beams, "num_return_sequences": num_beams}
    wanted = answers((model, processor), asked, GenerateEngine, 1, **search)
    for slots in (1, 3, 16):
        assert texts(answers((model, processor), asked, slots=slots, **search)) == texts(wanted)


def test_a_longer_prompt_may_come_in_the_middle(tiny):
    asked = [*samples(3), Sample("long.png", image(3), "tell me all of it, " * 4), *samples(3, first=3)]
    assert texts(answers(tiny, asked)) == texts(answers(tiny, asked, GenerateEngine))


def test_length_is_cut_to_the_positions_of_the_model(tiny):
    asked, search = samples(2, ("what is this?",)), {"max_length": 100_000, "min_length": 90_000}
    found = answers(tiny, asked, **search)
    assert [p.num_tokens for p in found] == [126, 126]
    assert texts(found) == texts(answers(tiny, asked, GenerateEngine, **search))


def test_forced_lengths_are_met(tiny):
    lengths = {"0.png": 3, "1.png": 20, "2.png": 1}
    settings = EngineConfig(
        generation=GenerationConfig(max_length=20), batch_size=2, forced_lengths=lambda sample: lengths[sample.id]
    )
    with Engine(*tiny, settings) as engine:
        assert {p.file_name: p.num_tokens for p in engine.run(samples(3))} == lengths


def test_answers_come_before_the_source_is_at_its_end(tiny):
    go_on = threading.Event()

    def slow() -> Iterator[Sample]:
        yield samples(1)[0]
        assert go_on.wait(30), "the first answer never came"
        yield samples(1, first=1)[0]

    with Engine(*tiny, EngineConfig(generation=GenerationConfig(max_length=5))) as engine:
        run = engine.run(slow())
        assert next(run).file_name == "0.png"
        go_on.set()
        assert [p.file_name for p in run] == ["1.png"]


def test_an_endless_source_is_read_no_further_than_needed_and_a_run_may_be_left(tiny):
    taken = itertools.count()

    def endless() -> Iterator[Sample]:
        while True:
            yield samples(1, first=next(taken))[0]

    settings = EngineConfig(generation=GenerationConfig(max_length=5), batch_size=2, num_workers=2)
    with Engine(*tiny, settings) as engine:
        run = engine.run(endless())
        first = [next(run).file_name for _ in range(3)]
        run.close()
        assert len(set(first)) == 3
        assert next(taken) < 20
        again = sorted(engine.run(samples(4)), key=lambda p: p.file_name)
    assert texts(again) == texts(answers(tiny, samples(4), max_length=5))


def test_an_error_of_the_source_is_not_swallowed(tiny):
    def broken() -> Iterator[Sample]:
        yield samples(1)[0]
        raise UserError("the list ends in the middle of a line")

    with pytest.raises(UserError, match="middle of a line"):
        answers(tiny, broken())


def test_an_adapter_must_be_merged(tiny):
    class Adapted:
        peft_config = ("default",)

    with pytest.raises(UserError, match="not merged"):
        Engine(Adapted(), tiny[1])


def test_slots_are_as_many_as_fit(tiny):
    with Engine(*tiny) as engine:
        assert engine.stats.slots == 16
    assert max_slots_for_memory(tiny[0], width=3, tokens=10**9, most=16) == 1


def test_stats_say_what_happened(tiny):
    settings = EngineConfig(generation=GenerationConfig(max_length=5, min_length=5), batch_size=2)
    with Engine(*tiny, settings) as engine:
        list(engine.run([*samples(4), missing()]))
        stats = engine.stats
    assert (stats.images, stats.errors, stats.slots) == (5, 1, 2)
    assert stats.tokens == 4 * 7  # with bos and eos
    assert 14 <= stats.steps <= 28  # two by two, unless pictures came late
    assert {"read", "vision", "encode", "decode", "write"} == set(stats.seconds)


class NoWaiting(TorchDispatchMode):
    """Fails where a step would make a device wait for the host: values read back, shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "equal", "is_nonzero", "bincount")

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_a_step_never_waits_for_the_device(tiny, search: dict):
    settings = EngineConfig(generation=GenerationConfig(max_length=9, **search), batch_size=2)
    with Engine(*tiny, settings) as engine, torch.inference_mode():
        run = engine.run(samples(2))
        next(run)
        with NoWaiting():
            engine.decode_step(2, 12, engine.cache.encoder_length, 0)
        run.close()


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}])
def test_a_slot_that_said_much_may_stand_empty_beside_short_answers(tiny, search: dict):
    settings = EngineConfig(generation=GenerationConfig(max_length=90, **search), batch_size=2)
    with Engine(*tiny, settings) as engine, torch.inference_mode():
        run = engine.run(samples(2, ("caption",)))
        next(run)
        engine.batch.length_S[:] = torch.tensor([5, 90])
        engine.batch.active_S[:] = torch.tensor([True, False])
        engine.decode_step(2, 32, engine.cache.encoder_length, 0)
        assert engine.batch.length_S.tolist() == [6, 90]
        run.close()
