"""Several engines as one. Here each runs in a thread behind a real connection; tests/recipes starts processes."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pickle import PicklingError
from unittest.mock import patch

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.requests import EngineInput
from florence2.engine.stats import Stats
from florence2.engine.workers.multi_engine import MultiEngine
from florence2.engine.workers.worker import (
    EngineWorker,
    WorkerConfig,
    WorkerOutput,
    WorkerReady,
    run_worker,
    start_worker,
)
from florence2.errors import UserError
from florence2.log import logger
from tests.engine.images import image, missing, samples
from tests.engine.test_engine import predict_all, texts
from tests.tiny import tiny_model

CONFIG = EngineConfig(GenerationConfig(max_length=20), batch_size=2, num_workers=1)
loaded: list[str | None] = []
ONE_SEED = threading.Lock()


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(1)


def load_tiny(device: str | None):
    if device == "tpu":
        raise UserError("device `tpu` cannot be used", "give another")
    with ONE_SEED:  # threads share torch's random numbers
        loaded.append(device)
        return tiny_model(1)


def dies(connection: Connection, _device: str) -> None:
    """Receive some samples, send no prediction, and close the connection, like a killed process."""
    connection.recv()
    connection.recv()
    connection.send(WorkerReady(2))
    for _ in range(2):
        connection.recv()
    connection.close()


def one_follow_up(prediction: Prediction) -> list[Sample]:
    return [Sample(prediction.file_name, image(0), "what else?")]


def predict_with(
    devices: dict[str, Callable[[Connection, str], None]],
    requests: list[Sample | EngineInput],
    generation: GenerationConfig | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Predict samples with workers in threads; return the sorted predictions, and the warnings."""
    loaded.clear()
    warnings: list[str] = []
    ends = [Pipe() for _ in devices]
    threads = [
        threading.Thread(target=task, args=(theirs, device), daemon=True)
        for (_, theirs), (device, task) in zip(ends, devices.items(), strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        with (
            patch.object(logger, "warning", warnings.append),
            MultiEngine(WorkerConfig(load_tiny, CONFIG), [], [ours for ours, _ in ends]) as engine,
        ):
            predictions = list(engine.run(requests, generation))
            assert warnings or engine.stats.images == len(requests)
    finally:  # a thread that runs on would share its random numbers with the next test
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return sorted(predictions, key=lambda prediction: prediction.file_name), warnings


def test_several_engines_equal_one(tiny):
    requests = [*samples(12), missing()]
    predictions, warnings = predict_with({"a": run_worker, "b": run_worker, "c": run_worker}, requests)
    assert texts(predictions) == texts(predict_all(tiny, requests))
    assert len(loaded) == 3, "every worker had samples"
    assert not warnings


def test_config_of_a_call_reaches_every_worker(tiny):
    shorter = GenerationConfig(max_length=6, do_sample=True)
    predictions, _ = predict_with({"a": run_worker, "b": run_worker}, samples(6), shorter)
    assert texts(predictions) == texts(predict_all(tiny, samples(6), max_length=6, do_sample=True))
    with pytest.raises(UserError, match="`num_beams` 2 of a request"):
        predict_with({"a": run_worker}, samples(1), GenerationConfig(max_length=6, num_beams=2))


def test_config_of_a_call_reaches_an_input_without_config(tiny):
    shorter, longer = GenerationConfig(max_length=6), GenerationConfig(max_length=9)
    first, second, third = samples(3)
    predictions, _ = predict_with({"a": run_worker}, [EngineInput(first), EngineInput(second, longer), third], shorter)
    for number, max_length in enumerate((6, 9, 6)):
        assert texts(predictions[number : number + 1]) == texts(
            predict_all(tiny, samples(1, first=number), max_length=max_length)
        )


def test_processes_end_where_the_engine_cannot_be_created():
    def load_that_cannot_be_pickled(device: str | None):
        raise AssertionError(device)

    started: list[EngineWorker] = []

    def start(device: str | None, threads: int | None) -> EngineWorker:
        if device == "broken":
            raise OSError("no more processes")
        started.append(start_worker(device, threads))
        return started[-1]

    with patch("florence2.engine.workers.multi_engine.start_worker", start):
        with pytest.raises(OSError, match="no more processes"):
            MultiEngine(WorkerConfig(load_tiny, CONFIG), ["cpu", "broken"])
        with pytest.raises((AttributeError, PicklingError), match="load_that_cannot_be_pickled"):
            MultiEngine(WorkerConfig(load_that_cannot_be_pickled, CONFIG), ["cpu"])
    assert len(started) == 2
    for worker in started:
        assert worker.connection.closed
        assert not worker.process.is_alive()


def test_second_run_is_refused():
    def done(connection: Connection, _device: str) -> None:
        connection.recv()
        connection.recv()
        connection.send(Stats())

    ours, theirs = Pipe()
    thread = threading.Thread(target=done, args=(theirs, "a"), daemon=True)
    thread.start()
    with MultiEngine(WorkerConfig(load_tiny, CONFIG), [], [ours]) as engine:
        assert list(engine.run([])) == []
        with pytest.raises(UserError, match="only run"):
            engine.run(samples(1))
    thread.join(60)


def test_closed_engine_refuses_to_run():
    with MultiEngine(WorkerConfig(load_tiny, CONFIG), []) as engine:
        pass
    with pytest.raises(UserError, match="the engine is closed"):
        engine.run(samples(1))


def test_samples_of_one_image_go_to_one_worker():
    images = [(f"{n}.png", image(n)) for n in range(4)]
    requests = [Sample(name, shared, task) for name, shared in images for task in ("od", "caption", "ocr")]
    devices_of: dict[str, set[str]] = {name: set() for name, _ in images}

    def echo(connection: Connection, device: str) -> None:
        connection.recv()
        connection.send(WorkerReady(1))
        for entry in iter(connection.recv, None):
            sample = entry.sample
            devices_of[sample.id].add(device)
            connection.send(WorkerOutput(Prediction(sample.id, sample.task), 1))
        connection.send(Stats(images=len(requests) // 2))

    predictions, _ = predict_with({"a": echo, "b": echo}, requests)
    assert sorted(each.key for each in predictions) == sorted(each.key for each in requests)
    assert all(len(names) == 1 for names in devices_of.values())
    assert set.union(*devices_of.values()) == {"a", "b"}


def test_samples_of_a_dead_worker_go_to_the_others(tiny):
    requests = samples(10)
    predictions, warnings = predict_with({"a": run_worker, "b": dies, "c": run_worker}, requests)
    assert texts(predictions) == texts(predict_all(tiny, requests))
    assert warnings == ["the engine on process 2 ended; the others continue"]


def test_follow_ups_of_a_dead_worker_go_to_the_others(tiny):
    is_dead = threading.Event()

    def dies_before_follow_ups(connection: Connection, _device: str) -> None:
        connection.recv()
        connection.send(WorkerReady(2))
        sample = connection.recv().sample
        connection.send(WorkerOutput(Prediction(sample.id, sample.task, text="short text"), 1))
        connection.close()
        is_dead.set()

    def waits(connection: Connection, device: str) -> None:
        is_dead.wait(60)
        run_worker(connection, device)

    requests = [replace(sample, follow_up=one_follow_up) for sample in samples(4, ("caption",))]
    predictions, warnings = predict_with({"a": dies_before_follow_ups, "b": waits}, requests)
    assert len(warnings) == 1
    assert Counter(each.task for each in predictions) == {"caption": 4, "what else?": 4}


def test_death_of_all_workers_is_an_error():
    with pytest.raises(UserError, match="no other engine is left") as error:
        predict_with({"a": dies, "b": dies}, samples(10))
    assert "run it again" in error.value.hint


def test_worker_that_cannot_start_reports_its_error():
    with pytest.raises(UserError, match="`tpu` cannot be used"):
        predict_with({"a": run_worker, "tpu": run_worker}, samples(4))


def test_without_samples_no_model_is_loaded():
    assert predict_with({"a": run_worker, "b": run_worker}, []) == ([], [])
    assert loaded == []
