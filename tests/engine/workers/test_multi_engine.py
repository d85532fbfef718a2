"""Several engines as one. Here each works in a thread at the end of a real connection; tests/recipes has processes."""

import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.stats import Stats
from florence2.engine.workers.multi_engine import MultiEngine
from florence2.engine.workers.worker import WorkerConfig, WorkerOutput, WorkerReady, run_worker
from florence2.errors import UserError
from tests.engine.images import image, missing, samples
from tests.engine.test_engine import answers, texts
from tests.tiny import tiny_model

SETTINGS = EngineConfig(GenerationConfig(max_length=20), batch_size=2, num_workers=1)
LOADED: list[str | None] = []
ONE_SEED = threading.Lock()


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(1)


def load_tiny(device: str | None):
    if device == "tpu":
        raise UserError("device `tpu` cannot be used", "give another")
    with ONE_SEED:  # threads share torch's random numbers
        LOADED.append(device)
        return tiny_model(1)


def dies(connection: Connection, _device: str) -> None:
    """Take some samples, answer none, and be gone, as a killed process is."""
    connection.recv()
    connection.recv()
    connection.send(WorkerReady(2))
    for _ in range(2):
        connection.recv()
    connection.close()


def answered_by(
    devices: dict[str, Callable[[Connection, str], None]],
    asked: list[Sample],
) -> tuple[list[Prediction], list[str]]:
    """Let a fleet of threads answer; give the predictions in order, and what the fleet told."""
    LOADED.clear()
    told: list[str] = []
    ends = [Pipe() for _ in devices]
    threads = [
        threading.Thread(target=task, args=(theirs, device), daemon=True)
        for (_, theirs), (device, task) in zip(ends, devices.items(), strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        with MultiEngine(WorkerConfig(load_tiny, SETTINGS), [], [ours for ours, _ in ends], told.append) as fleet:
            found = list(fleet.run(asked))
            assert told or fleet.stats.images == len(asked)
    finally:  # a thread left behind would share its random numbers with the next test
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return sorted(found, key=lambda prediction: prediction.file_name), told


def test_several_engines_say_what_one_says_and_each_thing_once(tiny):
    asked = [*samples(12), missing()]
    found, told = answered_by({"a": run_worker, "b": run_worker, "c": run_worker}, asked)
    assert texts(found) == texts(answers(tiny, asked))
    assert len(LOADED) == 3, "all of them had something to do"
    assert not told


def test_questions_about_one_image_stay_together():
    images = [(f"{n}.png", image(n)) for n in range(4)]
    asked = [Sample(name, shared, task) for name, shared in images for task in ("od", "caption", "ocr")]
    places: dict[str, set[str]] = {name: set() for name, _ in images}

    def echo(connection: Connection, device: str) -> None:
        connection.recv()
        connection.send(WorkerReady(1))
        for entry in iter(connection.recv, None):
            sample = entry.sample
            places[sample.id].add(device)
            connection.send(WorkerOutput(Prediction(sample.id, sample.task), 1))
        connection.send(Stats(images=len(asked) // 2))

    found, _ = answered_by({"a": echo, "b": echo}, asked)
    assert sorted(each.key for each in found) == sorted(each.key for each in asked)
    assert all(len(devices) == 1 for devices in places.values())
    assert set.union(*places.values()) == {"a", "b"}


def test_what_a_dead_engine_leaves_is_answered_by_the_others(tiny):
    asked = samples(10)
    found, told = answered_by({"a": run_worker, "b": dies, "c": run_worker}, asked)
    assert texts(found) == texts(answers(tiny, asked))
    assert told == ["the engine on process 2 ended; the others continue"]


def test_when_all_engines_are_dead_that_is_an_error():
    with pytest.raises(UserError, match="no other engine is left") as error:
        answered_by({"a": dies, "b": dies}, samples(10))
    assert "run it again" in error.value.hint


def test_an_engine_that_cannot_start_says_why():
    with pytest.raises(UserError, match="`tpu` cannot be used"):
        answered_by({"a": run_worker, "tpu": run_worker}, samples(4))


def test_without_samples_no_model_is_loaded():
    assert answered_by({"a": run_worker, "b": run_worker}, []) == ([], [])
    assert LOADED == []
