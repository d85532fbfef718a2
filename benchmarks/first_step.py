"""Time from `florence2 train` to its first step, by the number of images.

    python -m benchmarks.first_step --sizes 1000 100000

The images are copies of one JPEG under names of their own, linked where the file system can, each with a caption file.
Three runs of one step with the bundled model: the first, a second one with another output folder, which finds the
images as the first one checked them, and one that resumes the first. The log gives the time of each stage. Other
programs disturb the clock, and less so the processor time. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.processor import processor_name
from benchmarks.scale_of_work import make_images


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000])
    options = parser.parse_args()
    rows = [row for size in options.sizes for row in measure(size)]
    print("| images | start | s to the summary | s to the end of the first step | processor s | load |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row['images']:,}", row["start"]]
        cells += [f"{row[key]:.1f}" for key in ("summary", "first_step", "processor", "load")]
        print(f"| {' | '.join(cells)} |")
    print(json.dumps({"device": processor_name(), "rows": rows}))


def measure(size: int) -> Iterator[dict[str, Any]]:
    """Train one step on so many images, three times, each in a new process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", size)
        for number, image in enumerate((folder / "images").rglob("*.jpg")):
            image.with_suffix(".txt").write_text(f"image number {number}")
        time.sleep(3)  # files that changed a moment ago are not remembered
        for start, output, steps in (("first", "one", 1), ("second", "two", 1), ("resumed", "one", 2)):
            words = ["train", "--model_id", "demo", "--dataset", str(folder / "images"), "--recursive", "--resume"]
            words += ["auto", "--save_every_n_steps", "1", "--output_dir", str(folder / output), "--trainer_args"]
            words += [f"max_steps={steps}", "logging_steps=1"]
            load = os.getloadavg()[0]
            times = time_training(words, folder / output / "metrics.jsonl", folder / "cache")
            yield {"images": size, "start": start, "load": load} | times


def time_training(words: list[str], metrics: Path, cache: Path) -> dict[str, float]:
    """Run the command; return the seconds to its summary and to its next line of metrics."""
    seconds: dict[str, float] = {}
    size = metrics.stat().st_size if metrics.exists() else 0
    before, start = os.times(), time.perf_counter()
    environment = {**os.environ, "FLORENCE2_CACHE": str(cache)}
    command = [sys.executable, "-m", "florence2", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr

    def watch() -> None:
        while process.poll() is None and "first_step" not in seconds:
            if metrics.exists() and metrics.stat().st_size > size:
                seconds["first_step"] = time.perf_counter() - start
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for line in process.stderr:
        if " samples, " in line:
            seconds["summary"] = time.perf_counter() - start
    watcher.join()
    if process.wait():
        raise SystemExit(f"the training ended with code {process.returncode}")
    after = os.times()
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return seconds | {"processor": user + system}


if __name__ == "__main__":
    main()
