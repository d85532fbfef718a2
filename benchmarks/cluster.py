"""Throughput of `florence2 predict --cluster` with one and two engines beside plain `predict`, and Ray's cost an image.

    python -m benchmarks.cluster
    python -m benchmarks.cluster --num_images 2000 --num_rounds 3 --model_path /path/to/Florence-2-base-ft

Scenes are written into tars; the contestants take turns in every round, in engines of one thread each. A rate counts
from the first lines of the output to the end of the command, so that the loading of models is left out. Prints a table,
and one line of JSON last.
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from florence2.data.streams.tar_writer import write_shards
from florence2.demo.dataset import make_dataset

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "disabled",
}


@dataclass(frozen=True)
class Contestant:
    """One way to predict: its name, the CPUs of its Ray (0 is without Ray), and further flags."""

    name: str
    cpus: int = 0
    flags: tuple[str, ...] = ()


CONTESTANTS = (
    Contestant("predict"),
    Contestant("predict --devices cpu,cpu", flags=("--devices", "cpu,cpu")),
    Contestant("predict --cluster, 1 engine", 1),
    Contestant("predict --cluster, 2 engines", 2),
)


@dataclass(frozen=True)
class Timing:
    """Seconds of a whole command, and the rate of its predictions in images/s once engines run."""

    command_seconds: float
    rate: float


def main() -> None:
    """Run all contestants in turn and print the rates."""
    options = parse()
    timings: dict[str, list[Timing]] = {each.name: [] for each in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        tars = make_tars(Path(folder), options.num_images, options.num_shards)
        for number in range(options.num_rounds):
            for each in CONTESTANTS[:: 1 if number % 2 == 0 else -1]:
                timing = run(each, tars, Path(folder), options.model_path)
                print(f"round {number}: {each.name:30} {timing.rate:7.2f} images/s", file=sys.stderr)
                timings[each.name].append(timing)
    report = summary(options.num_images, timings)
    print("\n".join(table(report)))
    print(json.dumps({"command": sys.argv[1:], "cpus": os.cpu_count(), "rows": report}))


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
    make_dataset(folder / "photos", num_samples=min(num_images, 200), seed=0)
    photos = [path for path in sorted((folder / "photos").iterdir()) if path.suffix in (".jpg", ".png")]
    encoded: list[tuple[str, bytes, list[dict[str, Any]]]] = [(path.name, path.read_bytes(), [{}]) for path in photos]
    tars = folder / "tars"
    tars.mkdir()
    write_shards(tars, [encoded[index % len(encoded)] for index in range(num_images)], num_images // num_shards)
    return tars


@contextmanager
def ray_head(cpus: int, folder: Path) -> Iterator[list[str]]:
    """Start a Ray with a number of CPUs, and yield the flags of a command that uses it; without CPUs there is none."""
    if not cpus:
        yield []
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = ["start", "--head", f"--port={port}", f"--num-cpus={cpus}", "--include-dashboard=false", "--block"]
    more = [f"--temp-dir={folder}/ray", f"--object-store-memory={200 * 2**20}", "--disable-usage-stats"]
    program = "from ray.scripts.scripts import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *start, *more], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(15)
        yield ["--cluster", f"127.0.0.1:{port}"]
    finally:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.kill()  # a Ray that is asked to end waits for half a minute first
        process.wait()


def run(contestant: Contestant, tars: Path, folder: Path, model_path: str) -> Timing:
    """Run one command, with a Ray of its own, and read when its lines are written."""
    output = folder / "captions.jsonl"
    output.unlink(missing_ok=True)
    words = ["predict", "--model_path", model_path, "--input_path", str(tars), "--output_path", str(output)]
    with ray_head(contestant.cpus, folder) as cluster:
        command = [sys.executable, "-m", "florence2", *words, *contestant.flags, *cluster]
        start = time.monotonic()
        process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        first, num_first = watch(process, output)
        end = time.monotonic()
        errors = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise RuntimeError(errors[-2000:])
    total = output.read_bytes().count(b"\n")
    return Timing(end - start, (total - num_first) / (end - first))


def watch(process: subprocess.Popen[str], output: Path) -> tuple[float, int]:
    """Wait for the end of a process; return when its first lines were there, and how many."""
    first, number = 0.0, 0
    while process.poll() is None:
        if not first and output.exists() and (number := output.read_bytes().count(b"\n")):
            first = time.monotonic()
        time.sleep(0.02)
    return first, number


def summary(num_images: int, timings: dict[str, list[Timing]]) -> list[dict[str, float | str]]:
    """Return the median rate of each contestant, and its engine time an image beside that of plain `predict`."""
    rates = {name: statistics.median(each.rate for each in rounds) for name, rounds in timings.items()}
    plain = next(iter(rates.values()))
    engines = {each.name: max(each.cpus, 1) if "devices" not in each.name else 2 for each in CONTESTANTS}
    return [
        {
            "name": name,
            "images_per_second": round(rate, 2),
            "ratio": round(rate / plain, 3),
            "overhead_ms_per_image": round(1000 * (engines[name] / rate - 1 / plain), 2),
            "command_seconds": round(statistics.median(each.command_seconds for each in timings[name]), 1),
            "num_images": num_images,
        }
        for name, rate in rates.items()
    ]


def table(rows: list[dict[str, float | str]]) -> list[str]:
    """Return the rows as Markdown."""
    header = ["| | images/s | | ms an image over `predict` | command |", "|---|---|---|---|---|"]
    return header + [
        f"| {row['name']} | {row['images_per_second']} | {row['ratio']} x | {row['overhead_ms_per_image']} "
        f"| {row['command_seconds']} s |"
        for row in rows
    ]


if __name__ == "__main__":
    main()
