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
from florence2.errors import CheckpointError, UserError
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
    "4 beams, 3 sequences": {"num_beams": 4, "num_return_sequences": 3},
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


def predict_all(
    tiny, requests, kind=Engine, slots: int | None = 3, interval: int = 1, **generation
) -> list[Prediction]:
    """Predict all samples; return the predictions sorted by file name."""
    config = GenerationConfig(**{"max_length": 20} | generation)
    if kind is Engine:
        engine = late_engine(tiny, slots, interval, config)
    else:
        engine = kind(*tiny, EngineConfig(generation=config, batch_size=slots))
    with engine:
        return sorted(engine.run(requests), key=lambda prediction: prediction.file_name)


def texts(predictions: list[Prediction]) -> list[tuple[str, str, str | None]]:
    return [(each.file_name, each.text, each.error) for p in predictions for each in (p, *p.alternatives)]


@pytest.mark.parametrize("name", SEARCHES)
def test_engine_equals_generate(tiny, name: str):
    requests = [*samples(9), missing(), *samples(2, first=9)]
    expected = predict_all(tiny, requests, GenerateEngine, 8, **SEARCHES[name])
    assert len({len(p.text) for p in expected}) > 3
    for slots, order in ((1, requests), (3, requests[::-1]), (16, requests[5:] + requests[:5])):
        predictions = predict_all(tiny, order, slots=slots, **SEARCHES[name])
        assert texts(predictions) == texts(expected)
        assert [p.num_tokens for p in predictions] == [p.num_tokens for p in expected]
        assert [p.score or 0 for p in predictions] == pytest.approx([p.score or 0 for p in expected], rel=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_checkpoint_without_forced_tokens(tiny, num_beams: int):
    model, processor = tiny_model(1)
    model.generation_config.forced_bos_token_id = None
    model.generation_config.forced_eos_token_id = None
    requests, generation_args = samples(8), {"num_beams": num_beams}
    expected = predict_all((model, processor), requests, GenerateEngine, **generation_args)
    assert texts(predict_all((model, processor), requests, **generation_args)) == texts(expected)
    assert texts(expected) != texts(predict_all(tiny, requests, **generation_args))


@pytest.mark.parametrize("generation_args", [{}, {"num_beams": 3}])
def test_delayed_polling_changes_no_prediction(tiny, generation_args: dict):
    requests = samples(10)
    expected = texts(predict_all(tiny, requests, **generation_args))
    for slots in (3, 16):
        assert texts(predict_all(tiny, requests, slots=slots, interval=4, **generation_args)) == expected


@pytest.mark.parametrize(
    "generation_args", [{"top_p": 0.9}, {"top_k": 20, "num_return_sequences": 2}, {"num_beams": 2}]
)
def test_samples_do_not_depend_on_the_batch(tiny, generation_args: dict):
    requests, generation_args = (
        samples(8, ("what is this?", "od")),
        {"do_sample": True, "temperature": 1.2} | generation_args,
    )
    expected = predict_all(tiny, requests, slots=1, **generation_args)
    for slots, order in ((3, requests[::-1]), (16, requests)):
        assert texts(predict_all(tiny, order, slots=slots, **generation_args)) == texts(expected)
    assert texts(predict_all(tiny, requests, seed=1, **generation_args)) != texts(expected)


def test_sampling_with_top_k_1_is_greedy(tiny):
    requests = samples(6)
    assert texts(predict_all(tiny, requests, do_sample=True, top_k=1)) == texts(predict_all(tiny, requests))


def test_several_requests_encode_their_image_once(tiny):
    shared = image(0)
    requests = [Sample(f"{n}.png", shared, task) for n, task in enumerate(("od", "caption", "ocr", "what?", "why?"))]
    batch_sizes: list[int] = []
    hook = tiny[0].model.vision_tower.register_forward_hook(lambda _m, args, _o: batch_sizes.append(len(args[0])))
    try:
        predictions = predict_all(tiny, requests, slots=2)
    finally:
        hook.remove()
    assert sum(batch_sizes) == 1
    apart = [Sample(s.id, image(0), s.task) for s in requests]
    assert texts(predictions) == texts(predict_all(tiny, apart, GenerateEngine))


def follow_ups(prediction: Prediction) -> list[Sample]:
    """Make a sample for each token of a prediction, and one whose prompt is too long."""
    prompts = [f"what of {prediction.text[:n]}?" for n in range(prediction.num_tokens)]
    return [Sample(prediction.file_name, image(99), task) for task in [*prompts, "w" * 300]]


@pytest.mark.parametrize(("kind", "interval"), [(Engine, 1), (Engine, 4), (GenerateEngine, 1)])
def test_follow_ups_use_the_encoded_image(tiny, kind, interval: int):
    requests = [replace(sample, follow_up=follow_ups) for sample in [*samples(5, ("caption",)), missing()]]
    batch_sizes: list[int] = []
    hook = tiny[0].model.vision_tower.register_forward_hook(lambda _m, args, _o: batch_sizes.append(len(args[0])))
    try:
        predictions = predict_all(tiny, requests, kind, slots=2, interval=interval, max_length=6)
    finally:
        hook.remove()
    first = [prediction for prediction in predictions if prediction.task == "caption"]
    assert len(first) == 6
    assert sum(p.error is not None for p in first) == 1, "a sample that failed has no follow-ups"
    alone = [Sample(s.id, s.image, q.task) for s, p in zip(requests, first, strict=False) for q in follow_ups(p)][:-1]
    rest = [prediction for prediction in predictions if prediction.task != "caption"]
    assert set(texts(rest)) == set(texts(predict_all(tiny, alone, slots=2, max_length=6)))
    assert kind is GenerateEngine or sum(batch_sizes) == 5


@pytest.mark.parametrize("num_beams", [1, 3])
def test_exact_ties_equal_generate(num_beams: int):
    model, processor = tiny_model(1)
    embeddings = model.model.language_model.shared.weight.data
    embeddings[100:110] = embeddings[50:60]  # ten pairs of tokens that are equally likely, always
    requests, generation_args = samples(8), {"num_beams": num_beams, "num_return_sequences": num_beams}
    expected = predict_all((model, processor), requests, GenerateEngine, 1, **generation_args)
    for slots in (1, 3, 16):
        assert texts(predict_all((model, processor), requests, slots=slots, **generation_args)) == texts(expected)


def test_longer_prompt_grows_the_cache(tiny):
    requests = [*samples(3), Sample("long.png", image(3), "tell me all of it, " * 4), *samples(3, first=3)]
    assert texts(predict_all(tiny, requests)) == texts(predict_all(tiny, requests, GenerateEngine))


def test_length_is_cut_to_the_positions_of_the_model(tiny):
    requests, generation_args = samples(2, ("what is this?",)), {"max_length": 100_000, "min_length": 90_000}
    predictions = predict_all(tiny, requests, **generation_args)
    assert [p.num_tokens for p in predictions] == [126, 126]
    assert texts(predictions) == texts(predict_all(tiny, requests, GenerateEngine, **generation_args))


def test_forced_lengths_are_met(tiny):
    lengths = {"0.png": 3, "1.png": 20, "2.png": 1}
    config = EngineConfig(
        generation=GenerationConfig(max_length=20), batch_size=2, forced_lengths=lambda sample: lengths[sample.id]
    )
    with Engine(*tiny, config) as engine:
        assert {p.file_name: p.num_tokens for p in engine.run(samples(3))} == lengths


def test_predictions_come_before_the_iterable_ends(tiny):
    go_on = threading.Event()

    def slow() -> Iterator[Sample]:
        yield samples(1)[0]
        assert go_on.wait(30), "the first prediction never came"
        yield samples(1, first=1)[0]

    with Engine(*tiny, EngineConfig(generation=GenerationConfig(max_length=5))) as engine:
        run = engine.run(slow())
        assert next(run).file_name == "0.png"
        go_on.set()
        assert [p.file_name for p in run] == ["1.png"]


def test_run_over_endless_iterable_reads_little_ahead_and_can_be_closed(tiny):
    taken = itertools.count()

    def endless() -> Iterator[Sample]:
        while True:
            yield samples(1, first=next(taken))[0]

    config = EngineConfig(generation=GenerationConfig(max_length=5), batch_size=2, num_workers=2)
    with Engine(*tiny, config) as engine:
        run = engine.run(endless())
        first = [next(run).file_name for _ in range(3)]
        run.close()
        assert len(set(first)) == 3
        assert next(taken) < 20
        again = sorted(engine.run(samples(4)), key=lambda p: p.file_name)
    assert texts(again) == texts(predict_all(tiny, samples(4), max_length=5))


def test_error_of_the_iterable_is_raised(tiny):
    def broken() -> Iterator[Sample]:
        yield samples(1)[0]
        raise UserError("the list ends in the middle of a line")

    with pytest.raises(UserError, match="middle of a line"):
        predict_all(tiny, broken())


def test_engine_without_a_with_block_is_closed_by_close(tiny):
    engine = Engine(*tiny, EngineConfig(GenerationConfig(max_length=5), batch_size=1))
    unfinished = engine.run(samples(3))
    assert next(unfinished).error is None
    not_started = engine.run(samples(3))
    engine.close()
    engine.close()
    for use in (lambda: engine.run(samples(1)), lambda: next(unfinished), lambda: next(not_started)):
        with pytest.raises(UserError, match="the engine is closed"):
            use()


def test_unmerged_adapter_is_refused(tiny):
    class Adapted:
        peft_config = ("default",)

    with pytest.raises(CheckpointError, match="not merged"):
        Engine(Adapted(), tiny[1])


def test_number_of_slots_fits_the_memory(tiny):
    with Engine(*tiny) as engine:
        assert engine.stats.slots == 16
    assert max_slots_for_memory(tiny[0], width=3, tokens=10**9, most=16) == 1


def test_stats_count_images_errors_tokens_and_steps(tiny):
    config = EngineConfig(generation=GenerationConfig(max_length=5, min_length=5), batch_size=2)
    with Engine(*tiny, config) as engine:
        list(engine.run([*samples(4), missing()]))
        stats = engine.stats
    assert (stats.images, stats.errors, stats.slots) == (5, 1, 2)
    assert stats.tokens == 4 * 7  # with bos and eos
    assert 14 <= stats.steps <= 28  # two by two, unless images came late
    assert {"read", "vision", "encode", "decode", "write"} == set(stats.seconds)


class NoHostSync(TorchDispatchMode):
    """Fails where a step would make the host wait for the device: values read back, shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "equal", "is_nonzero", "bincount")

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "generation_args", [{}, {"num_beams": 3}, {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2}]
)
def test_decode_step_never_waits_for_the_device(tiny, generation_args: dict):
    config = EngineConfig(generation=GenerationConfig(max_length=9, **generation_args), batch_size=2)
    with Engine(*tiny, config) as engine, torch.inference_mode():
        run = engine.run(samples(2))
        next(run)
        with NoHostSync():
            engine.decode_step(2, 12, engine.cache.encoder_length, 0)
        run.close()


@pytest.mark.parametrize("generation_args", [{}, {"num_beams": 2}])
def test_idle_slot_may_be_longer_than_the_view(tiny, generation_args: dict):
    config = EngineConfig(generation=GenerationConfig(max_length=90, **generation_args), batch_size=2)
    with Engine(*tiny, config) as engine, torch.inference_mode():
        run = engine.run(samples(2, ("caption",)))
        next(run)
        engine.batch.length_S[:] = torch.tensor([5, 90])
        engine.batch.active_S[:] = torch.tensor([True, False])
        engine.decode_step(2, 32, engine.cache.encoder_length, 0)
        assert engine.batch.length_S.tolist() == [6, 90]
        run.close()
