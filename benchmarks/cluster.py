"""What Ray costs an image: `florence2 predict --cluster` with one and two engines beside `predict` without Ray.

    python -m benchmarks.cluster --num_images 1000 --num_rounds 3
    python -m benchmarks.cluster --model_path /path/to/Florence-2-base-ft --num_images 200 --num_shards 8

Scenes are written into tars. A pair is one number of engines with and without Ray, each engine with one thread; every
round runs both pairs, in an order that changes. Each run is measured from the moment when a fifth of its lines are
written to the moment when the last one is: neither the start of Ray, the loading of models, nor the shutdown counts.
Beside the wall time stands the CPU time of all processes of the run, Ray's own included, which other programs on the
machine disturb less. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from florence2.data.streams.tars.tar_writer import write_shards
from florence2.demo.dataset import make_dataset

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "disabled",
}
WARM_UP = 0.2  # of the lines
POLL = 0.02  # seconds
MAX_SCENES = 200


@dataclass(frozen=True)
class Contestant:
    """One way to predict: its number of engines, with or without Ray."""

    num_engines: int
    has_ray: bool

    @property
    def name(self) -> str:
        """Return its name in the table."""
        words = "predict --cluster" if self.has_ray else "predict"
        return f"`{words}`, {self.num_engines} engine{'s'[: self.num_engines > 1]}"

    @property
    def flags(self) -> list[str]:
        """Return the flags of the command, without the address of a cluster."""
        return ["--devices", "cpu,cpu"] if self.num_engines > 1 and not self.has_ray else ["--device", "cpu"]


PAIRS = tuple((Contestant(number, False), Contestant(number, True)) for number in (1, 2))


@dataclass(frozen=True)
class Timing:
    """Wall time and CPU time of an image in ms after the warm-up, and the seconds of the command."""

    wall_ms: float
    cpu_ms: float
    command_seconds: float


class CpuClock:
    """The CPU seconds of processes and all that they start; those of processes that ended remain in the sum."""

    def __init__(self, *roots: int) -> None:
        self._roots = roots
        self._seconds: dict[tuple[int, float], float] = {}

    def read(self) -> float:
        """Return the sum so far."""
        for root in self._roots:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(root)
                for each in (process, *process.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        times = each.cpu_times()
                        self._seconds[each.pid, each.create_time()] = times.user + times.system
        return sum(self._seconds.values())


def main() -> None:
    """Run all contestants in turn and print the table."""
    options = parse()
    timings: dict[Contestant, list[Timing]] = {each: [] for pair in PAIRS for each in pair}
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        tars = make_tars(Path(folder), options.num_images, options.num_shards)
        for number in range(options.num_rounds):
            for pair in PAIRS:
                for each in pair[:: 1 if number % 2 == 0 else -1]:
                    timing = run(each, tars, Path(folder), options)
                    print(f"round {number}: {each.name:32} {timing}", file=sys.stderr)
                    timings[each].append(timing)
    report = [row for pair in PAIRS for row in summary(pair, timings)]
    print("\n".join(table(report)))
    facts = {"cpus": os.cpu_count(), "num_images": options.num_images, "num_rounds": options.num_rounds}
    print(json.dumps({"command": sys.argv[1:], **facts, "rows": report}))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default="demo")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--num_shards", type=int, default=10)
    parser.add_argument("--num_rounds", type=int, default=3)
    return parser.parse_args()


def make_tars(folder: Path, num_images: int, num_shards: int) -> Path:
    """Write scenes into tars; beyond 200 the images repeat."""
    make_dataset(folder / "photos", num_samples=min(num_images, MAX_SCENES), seed=0)
    photos = [path for path in sorted((folder / "photos").iterdir()) if path.suffix in (".jpg", ".png")]
    encoded: list[tuple[str, bytes, list[dict[str, Any]]]] = [(path.name, path.read_bytes(), [{}]) for path in photos]
    tars = folder / "tars"
    tars.mkdir()
    write_shards(tars, [encoded[index % len(encoded)] for index in range(num_images)], num_images // num_shards)
    return tars


@contextmanager
def ray_head(cpus: int, folder: Path) -> Iterator[tuple[list[str], list[int]]]:
    """Start a Ray with a number of CPUs; yield the flags of a command that uses it, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = ["start", "--head", f"--port={port}", f"--num-cpus={cpus}", "--include-dashboard=false", "--block"]
    more = [f"--temp-dir={folder}/ray", f"--object-store-memory={200 * 2**20}", "--disable-usage-stats"]
    program = "from ray.scripts.scripts import main; main()"
    log = folder / "ray.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", program, *start, *more], env=ENVIRONMENT, stdout=file)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            if time.monotonic() > deadline:
                raise TimeoutError("Ray does not start")
            time.sleep(0.2)
        yield ["--cluster", f"127.0.0.1:{port}"], [process.pid]
    finally:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                each.kill()  # a Ray that is asked to end waits for half a minute first
        process.wait()


@contextmanager
def no_ray(*_: object) -> Iterator[tuple[list[str], list[int]]]:
    """Yield no flags and no process."""
    yield [], []


def run(contestant: Contestant, tars: Path, folder: Path, options: argparse.Namespace) -> Timing:
    """Run one command, with a Ray of its own, and read when its lines are written."""
    output = folder / "captions.jsonl"
    output.unlink(missing_ok=True)
    words = ["predict", "--model_path", options.model_path, "--input_path", str(tars), "--output_path", str(output)]
    cluster = ray_head if contestant.has_ray else no_ray
    with cluster(contestant.num_engines, folder) as (flags, ray_processes), tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "florence2", *words, *contestant.flags, *flags]
        start = time.monotonic()
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=log)
        clock = CpuClock(process.pid, *ray_processes)
        first, last = watch(process, output, clock, options.num_images)
        process.wait()
        command_seconds = time.monotonic() - start
        log.seek(0)
        if process.returncode or last.lines != options.num_images:
            raise RuntimeError(log.read()[-2000:])
    number = last.lines - first.lines
    wall, cpu = last.wall - first.wall, last.cpu - first.cpu
    return Timing(round(1000 * wall / number, 2), round(1000 * cpu / number, 2), round(command_seconds, 1))


@dataclass(frozen=True)
class Mark:
    """The clocks at a number of lines."""

    lines: int = 0
    wall: float = 0.0
    cpu: float = 0.0


def watch(process: subprocess.Popen[Any], output: Path, clock: CpuClock, total: int) -> tuple[Mark, Mark]:
    """Return the clocks after the warm-up and at the last line."""
    first = last = Mark()
    while last.lines < total:
        ended = process.poll() is not None
        number = output.read_bytes().count(b"\n") if output.exists() else 0
        if number > last.lines:
            last = Mark(number, time.monotonic(), clock.read())
            if not first.lines and number >= WARM_UP * total:
                first = last
        if ended:
            break
        time.sleep(POLL)
    return first, last


Row = dict[str, Any]


def summary(pair: tuple[Contestant, Contestant], timings: dict[Contestant, list[Timing]]) -> list[Row]:
    """Return the medians of a pair; the differences are those within each round."""
    rows: list[Row] = []
    for each in pair:
        rounds, plain = timings[each], timings[pair[0]]
        wall = [each.num_engines * (own.wall_ms - other.wall_ms) for own, other in zip(rounds, plain, strict=True)]
        cpu = [own.cpu_ms - other.cpu_ms for own, other in zip(rounds, plain, strict=True)]
        rows.append(
            {
                "name": each.name,
                "images_per_second": round(1000 / statistics.median(own.wall_ms for own in rounds), 1),
                "wall_ms": round(statistics.median(own.wall_ms for own in rounds), 2),
                "cpu_ms": round(statistics.median(own.cpu_ms for own in rounds), 2),
                "command_seconds": statistics.median(own.command_seconds for own in rounds),
                "wall_cost_ms": spread(wall) if each.has_ray else None,
                "cpu_cost_ms": spread(cpu) if each.has_ray else None,
            }
        )
    return rows


def spread(values: list[float]) -> list[float]:
    """Return median, least and largest value."""
    return [round(value, 2) for value in (statistics.median(values), min(values), max(values))]


def table(rows: list[Row]) -> list[str]:
    """Return the rows as Markdown."""
    header = [
        "| | images/s | wall ms an image | CPU ms an image | Ray's cost, wall ms of an engine | Ray's cost, CPU ms |",
        "|---|---|---|---|---|---|",
    ]
    return header + [
        f"| {row['name']} | {row['images_per_second']} | {row['wall_ms']} | {row['cpu_ms']} "
        f"| {cost(row['wall_cost_ms'])} | {cost(row['cpu_cost_ms'])} |"
        for row in rows
    ]


def cost(values: list[float] | None) -> str:
    """Return a difference with its range."""
    return f"{values[0]:+} ({values[1]:+} to {values[2]:+})" if values else ""


if __name__ == "__main__":
    main()
