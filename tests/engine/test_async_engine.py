import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from florence2.data.sample import Sample
from florence2.engine.async_engine import AsyncEngine
from florence2.engine.decoding.completion_poller import CompletionPoller
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import UserError
from tests.engine.images import image, missing, samples
from tests.engine.test_engine import predict_all, texts
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(1)


def async_engine(tiny, slots: int = 3, limit: int = 256, **generation) -> AsyncEngine:
    generation = {"max_length": 20} | generation
    return AsyncEngine(*tiny, EngineConfig(GenerationConfig(**generation), batch_size=slots), max_pending=limit)


def test_requests_at_any_time_equal_one_run(tiny):
    requests = [*samples(12), missing()]

    async def one(engine: AsyncEngine, number: int, sample: Sample):
        await asyncio.sleep(number % 5 / 50)
        return await engine.generate(sample)

    async def all_of_them():
        async with async_engine(tiny, num_beams=2) as engine:
            return await asyncio.gather(*(one(engine, n, sample) for n, sample in enumerate(requests)))

    predictions = sorted(asyncio.run(all_of_them()), key=lambda prediction: prediction.file_name)
    assert texts(predictions) == texts(predict_all(tiny, requests, num_beams=2))


def test_every_request_may_bring_its_config(tiny):
    configs = [GenerationConfig(max_length=20, **each) for each in ({}, {"num_beams": 2}, {"do_sample": True})]

    async def run():
        async with async_engine(tiny, num_beams=2) as engine:
            with pytest.raises(UserError, match="`num_beams` 3 of a request is above the 2"):
                await engine.generate(samples(1)[0], GenerationConfig(max_length=20, num_beams=3))
            several = await asyncio.gather(*(engine.generate(s, configs[n % 3]) for n, s in enumerate(samples(6))))
            return several, [each async for each in engine.stream(samples(3), configs[0])]

    several, greedy = asyncio.run(run())
    for number, prediction in enumerate(several):
        search = {key: getattr(configs[number % 3], key) for key in ("num_beams", "do_sample")}
        assert texts([prediction]) == texts(predict_all(tiny, samples(1, first=number), **search))
    assert texts(sorted(greedy, key=lambda each: each.file_name)) == texts(predict_all(tiny, samples(3)))


@pytest.mark.parametrize("interval", [1, 3])
def test_texts_so_far_are_beginnings_of_the_prediction(tiny, interval):
    async def run(requests, **search):
        texts_of = {sample.id: [] for sample in requests}
        async with async_engine(tiny, **search) as engine:
            engine.engine.poller = CompletionPoller(interval)
            jobs = [engine.generate(sample, on_text=texts_of[sample.id].append) for sample in requests]
            return texts_of, await asyncio.gather(*jobs)

    requests = samples(7)
    heard, predictions = asyncio.run(run(requests))
    assert texts(predictions) == texts(predict_all(tiny, requests))
    for prediction in predictions:
        several = heard[prediction.file_name]
        assert all(prediction.text.startswith(text) for text in several)
        assert [len(text) for text in several] == sorted(len(text) for text in several)
    num_tokens = sum(prediction.num_tokens for prediction in predictions)
    assert sum(map(len, heard.values())) >= num_tokens // (2 * interval), "too few texts were reported"
    assert not any(asyncio.run(run(samples(2), num_beams=2))[0].values()), "beams may still change"


def test_a_sample_opened_before_its_request_has_the_same_prediction(tiny, tmp_path):
    path = tmp_path / "large.jpg"
    image(5, (1000, 700)).save(path)
    sample = Sample("large.jpg", path, "od")

    async def run():
        async with async_engine(tiny) as engine:
            opened = engine.open_image(sample)
            assert opened.size == (1000, 700)
            assert opened.image.size < opened.size, "a JPEG is decoded at a reduced scale"
            return await engine.generate(replace(sample, image=opened)), engine.count_prompt_tokens(sample)

    prediction, num_tokens = asyncio.run(run())
    assert prediction == predict_all(tiny, [sample])[0]
    assert num_tokens > 5


def test_requests_of_one_file_name_get_their_own_predictions(tiny):
    requests = [Sample("upload.png", image(n), "caption") for n in range(6)]
    same = requests[0]

    async def ask():
        async with async_engine(tiny) as engine:
            return await asyncio.gather(*(engine.generate(sample) for sample in [*requests, same]))

    predictions = asyncio.run(ask())
    alone = [predict_all(tiny, [sample])[0].text for sample in requests]
    assert [prediction.text for prediction in predictions] == [*alone, alone[0]]
    assert len(set(alone)) > 3


def test_cancelled_request_frees_its_slot(tiny):
    async def ask():
        async with async_engine(tiny, slots=1, max_length=120, min_length=118) as engine:
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
    assert stats.images == 1, "the cancelled requests have no prediction"
    assert stats.steps < 2 * 120


def test_stream_reads_no_further_than_max_pending(tiny):
    taken = 0

    def source() -> Iterator[Sample]:
        nonlocal taken
        for sample in samples(9):
            taken += 1
            yield sample

    async def stream():
        async with async_engine(tiny, limit=2) as engine:
            predictions = []
            async for prediction in engine.stream(source()):
                predictions.append(prediction)
                assert engine.num_pending <= 2
                assert taken <= len(predictions) + 2
            return predictions

    predictions = sorted(asyncio.run(stream()), key=lambda prediction: prediction.file_name)
    assert texts(predictions) == texts(predict_all(tiny, samples(9)))


def test_pending_requests_raise_when_the_engine_stops(tiny):
    async def broken():
        async with async_engine(tiny) as engine:
            await engine.generate(samples(1)[0])
            engine.engine.decode_step = None
            with pytest.raises(TypeError):
                await engine.generate(samples(1)[0])
            with pytest.raises(UserError, match="has stopped"):
                await engine.generate(samples(1)[0])

    async def closed():
        async with async_engine(tiny, max_length=120, min_length=118) as engine:
            task = asyncio.create_task(engine.generate(samples(1)[0]))
            await asyncio.sleep(0)
        with pytest.raises(UserError, match="closed"):
            await task
        with pytest.raises(UserError, match="has stopped"):
            await engine.generate(samples(1)[0])

    async def never_used():
        engine = async_engine(tiny)
        await engine.close()
        assert engine.engine.is_closed

    asyncio.run(broken())
    start = time.monotonic()
    asyncio.run(closed())
    asyncio.run(never_used())
    assert time.monotonic() - start < 60
