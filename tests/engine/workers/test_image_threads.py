"""Images whose decoder hangs: an error for each, the run goes on with as many threads, and the process ends."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from florence2.data.sample import ImageError, Sample
from florence2.demo.dataset import make_dataset
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.workers.image_threads import ImageThreads
from florence2.errors import OptionError
from tests.engine.images import image
from tests.tiny import tiny_model


def test_more_images_hang_than_there_are_threads() -> None:
    never, num_threads = threading.Event(), threading.active_count()

    def block() -> io.BytesIO:
        never.wait(60)
        return io.BytesIO()

    samples = [Sample(f"{n}", partial(block) if n < 3 else image(n), "caption") for n in range(6)]  # type: ignore[arg-type]
    config = EngineConfig(
        GenerationConfig(max_length=4), num_workers=2, image_workers="threads", image_timeout=0.1, batch_size=2
    )
    with Engine(*tiny_model(), config) as engine:
        predictions = {each.file_name: each for each in engine.run(samples)}
    for n in range(3):
        assert str(predictions[str(n)].error).startswith(f"{n} could not be decoded in 0.5 s: its decoder waited, for ")
    assert [predictions[str(n)].error for n in range(3, 6)] == [None] * 3
    never.set()
    for thread in threading.enumerate():
        if thread.name == "open-images":
            thread.join(5)
    assert threading.active_count() <= num_threads + 1


def test_a_thread_that_computes_has_its_processor_time_and_one_that_waits_the_clock() -> None:
    def load(sample: Sample) -> str:
        start, clock = time.monotonic(), time.monotonic if sample.id == "waits" else time.thread_time
        limit = clock() + 0.6
        while clock() < limit and time.monotonic() - start < 20:
            time.sleep(0.05 if sample.id == "waits" else 0)
        return sample.id

    threads = ImageThreads(load, 2, timeout=0.3, clock_timeout=20)
    futures = [threads.submit(Sample(name, Image.new("RGB", (1, 1)), "caption")) for name in ("computes", "waits")]
    with pytest.raises(ImageError, match=r"computes could not be decoded in 0\.3 s of processor time"):
        futures[0].result(30)
    assert futures[1].result(30) == "waits"
    threads.close()


def test_results_errors_and_the_end() -> None:
    def load(sample: Sample) -> str:
        if sample.id == "2":
            raise ImageError("two")
        return sample.id

    threads = ImageThreads(load, 3, timeout=5, clock_timeout=5)
    futures = [threads.submit(Sample(str(n), Image.new("RGB", (1, 1)), "caption")) for n in range(20)]
    assert [each.result(5) for n, each in enumerate(futures) if n != 2] == [str(n) for n in range(20) if n != 2]
    with pytest.raises(ImageError, match="two"):
        futures[2].result(5)
    threads.close()
    with pytest.raises(OptionError, match="image_timeout"):
        EngineConfig(image_timeout=0)


def test_a_command_with_a_decoder_that_hangs_ends(tmp_path: Path) -> None:
    """A real process, whose decoder of one file reads from a pipe that nobody writes to."""
    make_dataset(tmp_path / "photos", num_samples=2)
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import sys\n"
        "from florence2.cli import program\n"
        "from florence2.data import image\n"
        "from florence2.engine.engine_config import EngineConfig\n"
        "init = EngineConfig.__init__\n"
        "EngineConfig.__init__ = lambda self, *a, **k: init(self, *a, **{'image_timeout': 0.6} | k)\n"
        "opened = image.Image.open\n"
        "def hang(file, *a, **k):\n"
        "    if '0000' in str(getattr(file, 'name', file)):\n"
        f"        open({str(tmp_path / 'pipe')!r}).read()\n"
        "    return opened(file, *a, **k)\n"
        "image.Image.open = hang\n"
        "program.run_program(['predict', *sys.argv[1:]])\n"
    )
    output = tmp_path / "o.jsonl"
    words = ["--model_path", "demo", "--input_path", str(tmp_path / "photos"), "--output_path", str(output)]
    run = subprocess.run(
        [sys.executable, "-c", code, *words, "--max_length", "4", "--image_workers", "threads"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    rows = {row["file_name"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert run.returncode == 1, run.stderr
    errors = [row.get("error") for _, row in sorted(rows.items())]
    assert errors[0].startswith("0000.png could not be decoded in 3 s: its decoder waited, for ")
    assert errors[1:] == [None]
