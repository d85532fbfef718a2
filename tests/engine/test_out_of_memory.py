"""A device without memory for the batch: the engine halves it, and the predictions are the same."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from florence2.engine.decoding import kv_cache
from florence2.engine.decoding.completion_poller import CompletionPoller
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.scheduler import Scheduler
from florence2.errors import DeviceMemoryError
from tests.engine.images import samples
from tests.tiny import tiny_model

CONFIG = EngineConfig(GenerationConfig(max_length=20, num_beams=2), batch_size=8)
Make = type[Engine] | type[GenerateEngine]


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(1)


def small_device(step: Callable[..., Any], size: Callable[..., int], limit: int) -> Callable[..., Any]:
    """Let a step of the model fail as on a GPU of little memory where its batch is above the limit."""

    def limited(*args: Any, **options: Any) -> Any:
        if size(*args, **options) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(*args, **options)

    return limited


def run(engine: Engine | GenerateEngine) -> list[tuple[Any, ...]]:
    """Predict images; the last bits of scores depend on the batch."""
    with engine:
        return sorted((each.key, each.text, each.error) for each in engine.run(samples(11)))


@pytest.fixture(scope="module")
def expected(tiny) -> list[tuple[Any, ...]]:
    return run(Engine(*tiny, CONFIG))


def like_a_gpu(engine: Engine) -> Engine:
    """Make an engine encode several images at a time, and poll late."""
    engine.poller, engine.encoder.batch_size = CompletionPoller(4), 4
    engine.scheduler = Scheduler(engine.stats.slots, static_shapes=True)
    return engine


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("interval", [1, 4])
def test_decode_step(tiny, expected, caplog: pytest.LogCaptureFixture, limit: int, interval: int) -> None:
    engine = Engine(*tiny, CONFIG)
    if interval > 1:
        like_a_gpu(engine)
    engine.decoder.step = small_device(engine.decoder.step, lambda _, batch: len(batch.active_S), limit)  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "florence2"):
        assert run(engine) == expected
    lines = [record.message for record in caplog.records]
    halves = [8, 4, 2][: 3 if limit == 1 else 2]
    assert lines == [
        f"the device has no memory for {size} requests at a time; the engine goes on with {size // 2}"
        for size in halves
    ]
    assert engine.stats.slots == halves[-1] // 2


def test_encoder_pass(tiny, expected) -> None:
    engine = like_a_gpu(Engine(*tiny, CONFIG))
    encoder = engine.encoder
    encoder.vision = small_device(encoder.vision, len, 2)
    assert run(engine) == expected
    assert (engine.stats.slots, encoder.batch_size) == (4, 2)


def test_cross_attention_cache(tiny, expected) -> None:
    """It is allocated with the first image, by a real allocator that refuses."""
    engine = Engine(*tiny, CONFIG)
    prefill, is_first = engine.decoder.prefill_cross_attention, [True]

    def allocate_too_much(*args: Any) -> None:
        if is_first.pop() if is_first else False:
            torch.empty(2**55)
        prefill(*args)

    engine.decoder.prefill_cross_attention = allocate_too_much  # type: ignore[method-assign]
    assert run(engine) == expected
    assert engine.stats.slots == 4


def test_memory_of_the_slots(tiny, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = small_device(kv_cache.KVCache, lambda _, slots, *__: slots, 2)
    monkeypatch.setattr(kv_cache, "KVCache", limited)
    engine = Engine(*tiny, CONFIG)
    assert engine.stats.slots == 2
    assert run(engine) == expected


@pytest.mark.parametrize("limit", [1, 3])
def test_generate_engine(tiny, expected, limit: int, caplog: pytest.LogCaptureFixture) -> None:
    engine = GenerateEngine(*tiny, replace(CONFIG, batch_size=8))
    engine._encode = small_device(engine._encode, len, limit)  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "florence2"):
        assert run(engine) == expected
    assert 1 <= len(caplog.records) <= 5


@pytest.mark.parametrize("kind", [Engine, GenerateEngine])
def test_no_memory_for_one_request_is_an_error_of_the_run(tiny, kind: Make) -> None:
    engine: Any = kind(*tiny, CONFIG)
    if isinstance(engine, Engine):
        engine.encoder.vision = small_device(engine.encoder.vision, len, 0)
    else:
        engine._encode = small_device(engine._encode, len, 0)
    with engine, pytest.raises(DeviceMemoryError, match="no memory for one request") as caught:
        list(engine.run(samples(3)))
    assert "--dtype bfloat16" in caught.value.hint


def test_other_errors_are_raised(tiny) -> None:
    engine = Engine(*tiny, CONFIG)

    def fail(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    engine.decoder.step = fail  # type: ignore[method-assign,assignment]
    with engine, pytest.raises(RuntimeError, match="illegal"):
        list(engine.run(samples(2)))
