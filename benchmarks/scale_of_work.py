"""Time and memory of `florence2 predict` without its model, by the number of images.

    python -m benchmarks.scale_of_work
    python -m benchmarks.scale_of_work --sizes 10 1000 --write

The engine is replaced by one that returns a caption at once and opens no image. What remains is the work around it:
listing, the journal, progress, and reading the journal again when a run resumes. Every run is a new process: one from
the start, one that resumes a journal of half of the images, and one with nothing left to do. The images are hard links
to one file where the file system has them. The peak is that of the process, the imports of torch included, which are
the row of 10 images; `--flat` puts all images, empty files, into one folder. The bytes of an image are what the peak,
and the memory at the first prediction, has grown by since the smallest size. Prints a table and one line of JSON, and
writes both to a dated file on request.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.processor import processor_name

RESULTS = Path(__file__).parent / "results"
IMAGES_PER_FOLDER = 1000
CAPTION = "a caption of about the usual length, with a dog on a beach and a boat behind it"


class FreeEngine:
    """An engine that costs nothing: a caption for each sample, and no pixels."""

    def __init__(self) -> None:
        from florence2.engine.stats import Stats

        self.stats = Stats(slots=16, slots_in_use=16)
        self.first: float | None = None
        self.first_processor = self.first_mib = 0.0

    def __enter__(self) -> FreeEngine:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Yield a prediction for each sample."""
        from florence2.data.sample import Prediction

        for sample in samples:
            if self.first is None:
                self.first, self.first_processor = time.perf_counter(), time.process_time()
                self.first_mib = memory_mib("VmRSS")
            yield Prediction(sample.id, sample.task, sample.input, text=CAPTION, num_tokens=20, score=0.5)


def main() -> None:
    """Measure every size, or be one of the processes that do the work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1_000, 100_000, 1_000_000])
    parser.add_argument("--flat", action="store_true", help="one folder of empty files in place of many of images")
    parser.add_argument("--write", action="store_true", help=f"also write a dated file into {RESULTS.name}/")
    parser.add_argument("--run", nargs=2, metavar=("IMAGES", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(predict(*options.run)))
        return
    rows = [row for size in options.sizes for row in measure(size, is_flat=options.flat)]
    add_bytes_per_image(rows)
    command = "python -m benchmarks.scale_of_work " + " ".join(sys.argv[1:])
    report = json.dumps({"command": command.strip(), "device": processor_name(), "rows": rows})
    print(text := table(rows))
    print(report)
    if options.write:
        date = f"{datetime.now(UTC):%Y-%m-%d}"
        title = f"# Prediction without its model, by the number of images: {processor_name()}"
        loads = f"load of the machine before each run {min(r['load'] for r in rows)} to {max(r['load'] for r in rows)}"
        content = f"{title}\n\n{text}\n\n{date}, {loads}\n\n```json\n{report}\n```\n"
        (RESULTS / f"{date}-scale-of-work{'-flat' if options.flat else ''}.md").write_text(content)


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
        "processor_seconds_to_first": (engine.first_processor or time.process_time()) - cpu_start,
        "first_mib": engine.first_mib,
        "peak_mib": memory_mib("VmHWM"),
        "predictions": summary.num_predictions,
    }


def memory_mib(name: str) -> float:
    """Return this process's memory, `VmRSS`, or its peak, `VmHWM`; `getrusage` would count its parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


def measure(size: int, *, is_flat: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of one size: from the start, resumed in the middle, and with nothing left."""
    with tempfile.TemporaryDirectory() as folder:
        images, output = Path(folder) / "images", Path(folder) / "captions.jsonl"
        make_empty_images(images, size) if is_flat else make_images(images, size)
        for kind in ("from the start", "half is done", "all is done"):
            if kind == "half is done":
                truncate(output, size // 2)
            load = round(os.getloadavg()[0], 1)
            row = {"images": size, "kind": kind, "load": load} | run_process(images, output)
            print(f"{size} images, {kind}: {row['seconds']:.1f} s (load before {load})", file=sys.stderr)
            yield row


def add_bytes_per_image(rows: list[dict[str, Any]]) -> None:
    """Add what an image costs in memory to each row: the growth since the row of its kind with the fewest images."""
    for row in rows:
        least = min((each for each in rows if each["kind"] == row["kind"]), key=lambda each: each["images"])
        more = row["images"] - least["images"]
        for name in ("first", "peak") if more and row["predictions"] else ("peak",) if more else ():
            row[f"{name}_bytes"] = 2**20 * (row[f"{name}_mib"] - least[f"{name}_mib"]) / more


def truncate(journal: Path, num_lines: int) -> None:
    """Leave the first lines of a file."""
    with journal.open("rb") as file:
        length = sum(len(line) for line in islice(file, num_lines))
    os.truncate(journal, length)


def run_process(images: Path, output: Path) -> dict[str, Any]:
    """Run one prediction in a new process and return its measurements."""
    command = [sys.executable, "-m", "benchmarks.scale_of_work", "--run", str(images), str(output)]
    start = time.perf_counter()
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    return {"command_seconds": seconds, **json.loads(result.stdout.splitlines()[-1])}


def make_images(folder: Path, size: int) -> None:
    """Make a folder of subfolders of links to one small JPEG."""
    folder.mkdir()
    source = folder / "0000000.jpg"
    Image.effect_noise((64, 64), 60).convert("RGB").save(source)
    for number in range(1, size):
        parent = folder / f"{number // IMAGES_PER_FOLDER:04}"
        if number == 1 or number % IMAGES_PER_FOLDER == 0:
            parent.mkdir(exist_ok=True)
        source = link_or_copy(source, parent / f"{number:07}.jpg")


def make_empty_images(folder: Path, size: int) -> None:
    """Make a folder of links to an empty file, which no prediction with the free engine opens."""
    folder.mkdir()
    source = folder / "0000000.jpg"
    source.touch()
    for number in range(1, size):
        source = link_or_copy(source, folder / f"{number:07}.jpg")


def link_or_copy(source: Path, target: Path) -> Path:
    """Link a file, or copy it where the file system has no links, or no more of this file; return the file to link."""
    try:
        os.link(source, target)
    except OSError:
        return Path(shutil.copyfile(source, target))
    return source


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as Markdown."""
    lines = [
        "| images | run | s | with process start | ms/image | processor | s to the first prediction | processor "
        "| peak MiB "
        "| bytes an image: at the first prediction | at the peak |",
        "|" + " --- |" * 11,
    ]
    for row in rows:
        clock, processor = (1000 * row[name] / row["images"] for name in ("seconds", "processor_seconds"))
        cells = [f"{row['images']:,}", row["kind"], f"{row['seconds']:.2f}", f"{row['command_seconds']:.2f}"]
        cells += [f"{clock:.3f}", f"{processor:.3f}", f"{row['seconds_to_first']:.2f}"]
        cells += [f"{row['processor_seconds_to_first']:.2f}", f"{row['peak_mib']:.0f}"]
        cells += [f"{row[name]:.0f}" if name in row else "" for name in ("first_bytes", "peak_bytes")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
