"""Time and memory of `florence2 predict` without its model, by the number of images.

    python -m benchmarks.scale_of_work
    python -m benchmarks.scale_of_work --sizes 10 1000 100000 1000000

The engine is replaced by one that returns a caption at once and opens no image. What remains is the work around it:
listing, the journal, progress, and reading the journal again when a run resumes. Every run is a new process: one from
the start, one that resumes a journal of half of the images, and one with nothing left to do. The images are hard links
to one file where the file system has them. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.throughput import processor_name

IMAGES_PER_FOLDER = 1000
CAPTION = "a caption of about the usual length, with a dog on a beach and a boat behind it"


class FreeEngine:
    """An engine that costs nothing: a caption for each sample, and no pixels."""

    def __init__(self) -> None:
        from florence2.engine.stats import Stats

        self.stats = Stats(slots=16, slots_in_use=16)
        self.first: float | None = None

    def __enter__(self) -> FreeEngine:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Yield a prediction for each sample."""
        from florence2.data.sample import Prediction

        for sample in samples:
            self.first = self.first or time.perf_counter()
            yield Prediction(sample.id, sample.task, sample.input, text=CAPTION, num_tokens=20, score=0.5)


def main() -> None:
    """Measure every size, or be one of the processes that do the work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1_000, 100_000])
    parser.add_argument("--run", nargs=2, metavar=("IMAGES", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(predict(*options.run)))
        return
    rows = [row for size in options.sizes for row in measure(size)]
    command = "python -m benchmarks.scale_of_work " + " ".join(sys.argv[1:])
    print(table(rows))
    print(json.dumps({"command": command.strip(), "device": processor_name(), "rows": rows}))


def predict(images: str, output: str) -> dict[str, float]:
    """Run `predict` with the free engine in this process; return seconds, processor seconds and the peak memory."""
    from florence2.config import InputSettings, OutputSettings, PredictSettings, WeightsSettings
    from florence2.recipes import predict as recipe

    engine = FreeEngine()
    vars(recipe)["create_engine"] = lambda *_: engine
    settings = PredictSettings(
        WeightsSettings("demo"), InputSettings(images, recursive=True), OutputSettings(output_path=output)
    )
    start, cpu_start = time.perf_counter(), time.process_time()
    summary = recipe.run_predict(settings)
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - cpu_start,
        "seconds_to_first": (engine.first or time.perf_counter()) - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "predictions": summary.num_predictions,
    }


def measure(size: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one size: from the start, resumed in the middle, and with nothing left."""
    with tempfile.TemporaryDirectory() as folder:
        images, output = Path(folder) / "images", Path(folder) / "captions.jsonl"
        make_images(images, size)
        for kind in ("from the start", "half is done", "all is done"):
            if kind == "half is done":
                lines = output.read_bytes().splitlines(keepends=True)
                output.write_bytes(b"".join(lines[: size // 2]))
            yield {"images": size, "kind": kind} | run_process(images, output)
            print(f"{size} images, {kind} (load {os.getloadavg()[0]:.2f})", file=sys.stderr)


def run_process(images: Path, output: Path) -> dict[str, Any]:
    """Run one prediction in a new process and return its measurements."""
    command = [sys.executable, "-m", "benchmarks.scale_of_work", "--run", str(images), str(output)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def make_images(folder: Path, size: int) -> None:
    """Make a folder of subfolders of links to one small JPEG."""
    folder.mkdir()
    first = folder / "0000000.jpg"
    Image.effect_noise((64, 64), 60).convert("RGB").save(first)
    data = first.read_bytes()
    for number in range(1, size):
        parent = folder / f"{number // IMAGES_PER_FOLDER:04}"
        if number == 1 or number % IMAGES_PER_FOLDER == 0:
            parent.mkdir(exist_ok=True)
        target = parent / f"{number:07}.jpg"
        try:
            os.link(first, target)
        except OSError:  # the file system has no links, or as many of this file as it can
            target.write_bytes(data)


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as Markdown."""
    lines = [
        "| images | run | s | processor ms/image | s to the first prediction | peak MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cost = 1000 * row["processor_seconds"] / row["images"]
        times = f"{row['seconds']:.2f} | {cost:.3f} | {row['seconds_to_first']:.2f}"
        lines.append(f"| {row['images']:,} | {row['kind']} | {times} | {row['peak_mib']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
