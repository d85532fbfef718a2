import asyncio
import time
from collections.abc import Iterator

import pytest

from florence2.data.sample import Sample
from florence2.engine.async_engine import AsyncEngine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import UserError
from tests.engine.images import image, missing, samples
from tests.engine.test_engine import answers, texts
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(1)


def hosted(tiny, slots: int = 3, limit: int = 256, **generation) -> AsyncEngine:
    generation = {"max_length": 20} | generation
    return AsyncEngine(*tiny, EngineConfig(GenerationConfig(**generation), batch_size=slots), max_pending=limit)


def test_requests_that_come_at_any_time_get_what_one_run_gives(tiny):
    asked = [*samples(12), missing()]

    async def one(engine: AsyncEngine, number: int, sample: Sample):
        await asyncio.sleep(number % 5 / 50)
        return await engine.generate(sample)

    async def all_of_them():
        async with hosted(tiny, num_beams=2) as engine:
            return await asyncio.gather(*(one(engine, n, sample) for n, sample in enumerate(asked)))

    found = sorted(asyncio.run(all_of_them()), key=lambda prediction: prediction.file_name)
    assert texts(found) == texts(answers(tiny, asked, num_beams=2))


def test_requests_of_one_name_are_told_apart(tiny):
    asked = [Sample("upload.png", image(n), "caption") for n in range(6)]
    same = asked[0]

    async def ask():
        async with hosted(tiny) as engine:
            return await asyncio.gather(*(engine.generate(sample) for sample in [*asked, same]))

    found = asyncio.run(ask())
    alone = [answers(tiny, [sample])[0].text for sample in asked]
    assert [prediction.text for prediction in found] == [*alone, alone[0]]
    assert len(set(alone)) > 3


def test_a_cancelled_request_leaves_its_slot_to_others(tiny):
    async def ask():
        async with hosted(tiny, slots=1, max_length=120, min_length=118) as engine:
            long = [asyncio.create_task(engine.generate(sample)) for sample in samples(4)]
            await asyncio.sleep(0.05)
            for task in long:
                task.cancel()
            done = await asyncio.gather(*long, return_exceptions=True)
            last = await asyncio.wait_for(engine.generate(samples(1, first=9)[0]), 60)
            return done, last, engine.num_pending, engine.engine.stats

    done, last, still_open, stats = asyncio.run(ask())
    assert all(isinstance(each, asyncio.CancelledError) for each in done)
    assert last.file_name == "9.png"
    assert still_open == 0
    assert stats.images == 1, "nobody waited for the others"
    assert stats.steps < 2 * 120


def test_no_more_than_the_limit_are_taken_ahead(tiny):
    taken = 0

    def source() -> Iterator[Sample]:
        nonlocal taken
        for sample in samples(9):
            taken += 1
            yield sample

    async def stream():
        async with hosted(tiny, limit=2) as engine:
            found = []
            async for prediction in engine.stream(source()):
                found.append(prediction)
                assert engine.num_pending <= 2
                assert taken <= len(found) + 2
            return found

    found = sorted(asyncio.run(stream()), key=lambda prediction: prediction.file_name)
    assert texts(found) == texts(answers(tiny, samples(9)))


def test_whoever_waits_hears_of_an_engine_that_stops(tiny):
    async def broken():
        async with hosted(tiny) as engine:
            await engine.generate(samples(1)[0])
            engine.engine.decode_step = None
            with pytest.raises(TypeError):
                await engine.generate(samples(1)[0])
            with pytest.raises(UserError, match="has stopped"):
                await engine.generate(samples(1)[0])

    async def closed():
        async with hosted(tiny, max_length=120, min_length=118) as engine:
            task = asyncio.create_task(engine.generate(samples(1)[0]))
            await asyncio.sleep(0)
        with pytest.raises(UserError, match="closed"):
            await task

    asyncio.run(broken())
    start = time.monotonic()
    asyncio.run(closed())
    assert time.monotonic() - start < 60
