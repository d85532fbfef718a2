"""A process fills the compiler's cache beside the engine; whatever becomes of it, the run goes on."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from florence2.engine.encoder.compile_job import CompileJob
from florence2.engine.encoder.compile_main import compile_tower
from florence2.engine.encoder.compile_process import CompileProcess
from florence2.engine.encoder.gram_channel_attention import GramChannelAttention
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from tests.engine.images import samples
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="torch compiles with g++"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
GENERATION = GenerationConfig(max_length=20)


@pytest.fixture(autouse=True)
def compiler_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    counters.clear()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def predict(engine: Engine, number: int = 5) -> list[tuple[Any, ...]]:
    return sorted((each.key, each.text, each.error) for each in engine.run(samples(number)))


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_model(1)


@pytest.fixture(scope="module")
def expected(tiny: Any) -> list[tuple[Any, ...]]:
    with Engine(*tiny, EngineConfig(GENERATION, compile="off")) as engine:
        return predict(engine)


@torch.inference_mode()
def test_the_engine_finds_what_another_process_compiled_without_the_weights() -> None:
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(8, 8), nn.GELU()).requires_grad_(False)
    pixels = torch.randn(2, 8)
    with contextlib.closing(CompileProcess(tower, pixels)) as process:
        assert process.poll() is None
        process.wait()
        assert process.poll(), process.reason
    torch.testing.assert_close(compile_tower(tower)(pixels), tower(pixels))
    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert not counters["inductor"]["fxgraph_cache_miss"]


def test_a_killed_process_leaves_the_run_as_it_is(
    tiny: Any, expected: list[tuple[Any, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "florence2")
    with Engine(*tiny, EngineConfig(GENERATION, compile="on")) as engine:
        run = engine.run(samples(5))
        predictions = [next(run)]
        assert engine.stats.num_compiling == 1
        process = engine.encoder._compile_process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        predictions += run
        assert predict(engine) == expected  # and does not try again
        assert engine.stats.num_compiling == 0
    assert sorted((each.key, each.text, each.error) for each in predictions) == expected
    lines = [line for line in caplog.messages if "vision tower" in line]
    assert lines[0] == "compiling the vision tower in the background: until then images pass it uncompiled"
    assert lines[1:] == [
        f"the vision tower cannot be compiled, and stays as it is: its process was ended by signal 9: "
        f"{signal.strsignal(signal.SIGKILL)}"
    ]


def test_a_model_that_cannot_be_sent_is_not_compiled(
    tiny: Any, expected: list[tuple[Any, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = tiny
    model.model.vision_tower.hook = lambda: None
    try:
        with Engine(model, processor, EngineConfig(GENERATION, compile="on")) as engine:
            assert predict(engine) == expected
    finally:
        del model.model.vision_tower.hook
    (line,) = (line for line in caplog.messages if "vision tower" in line)
    assert line.startswith("the vision tower cannot be compiled, and stays as it is: ")


def test_the_process_names_what_the_compiler_reports() -> None:
    class Broken(nn.Linear):  # local, so that the process does not find it
        pass

    with pytest.raises(Exception, match="Broken"):
        CompileProcess(Broken(2, 2), torch.zeros(1, 2))
    with contextlib.closing(CompileProcess(nn.Linear(3, 2), torch.zeros(1, 2))) as process:
        process.wait()
        assert process.poll() is False
        assert "Error: " in process.reason
        assert len(process.reason) <= 200


def test_the_end_of_the_engine_ends_the_process_and_a_smaller_batch_starts_another(tiny: Any) -> None:
    with Engine(*tiny, EngineConfig(GENERATION, compile="on")) as engine:
        engine.encoder.batch_size = 4
        engine.encoder.prepare("on", 1)
        first = engine.encoder._compile_process
        engine.encoder.prepare("on", 1)
        assert engine.encoder._compile_process is first is not None
        engine.encoder.halve_batch(4)
        second = engine.encoder._compile_process
        assert second is not None
        assert not is_running(first.pid)
        assert is_running(second.pid)
    assert not is_running(second.pid)


def test_int8_and_off_compile_nothing(tiny: Any) -> None:
    with Engine(*tiny, EngineConfig(GENERATION, compile="off")) as engine:
        engine.encoder.prepare("off", 10**9)
        engine.encoder.prepare("auto", 10**9)  # on a CPU
        assert not engine.encoder.is_compiling


PROGRAM = """
import time, torch
from florence2.engine.encoder.compile_process import CompileProcess
process = CompileProcess(torch.nn.Linear(2, 2), torch.zeros(1, 2))
print(process.pid, flush=True)
time.sleep(600)
"""


def test_the_process_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_for(lambda: not is_running(pid))


def test_patched_attention_is_sent_as_what_it_patches() -> None:
    model, _ = tiny_model(1)
    model = model.to(torch.bfloat16)
    with Engine(model, tiny_model(1)[1], EngineConfig(GENERATION)) as engine:
        content = CompileJob(engine.encoder.vision, torch.zeros(1), 1, "highest").to_bytes()
        tower = CompileJob.read(io.BytesIO(content)).tower
        own = dict(engine.encoder.vision.named_parameters())
    patches = [each.forward for each in tower.modules() if type(each).__name__.endswith("ChannelAttention")]
    assert patches
    assert all(isinstance(each, GramChannelAttention) for each in patches)
    for name, weight in tower.named_parameters():
        assert (weight.shape, weight.stride(), weight.dtype) == (own[name].shape, own[name].stride(), own[name].dtype)
        assert not weight.any()


@pytest.mark.long
def test_a_run_changes_to_the_compiled_tower_between_two_batches(
    tiny: Any, expected: list[tuple[Any, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "florence2")
    with Engine(*tiny, EngineConfig(GENERATION, compile="on")) as engine:
        assert predict(engine) == expected
        assert not engine.encoder.is_compiled
        process = engine.encoder._compile_process
        assert process
        process.wait()
        assert predict(engine) == expected
        assert engine.encoder.is_compiled
        assert counters["inductor"]["fxgraph_cache_hit"] == 1
        assert not counters["inductor"]["fxgraph_cache_miss"]
    assert caplog.messages[-1].startswith("the vision tower is compiled, in ")
