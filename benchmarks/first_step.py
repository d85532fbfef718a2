"""Time from `florence2 train` to its first step, by the number of images.

    python -m benchmarks.first_step --sizes 1000 100000

The images are copies of one JPEG under names of their own, linked where the file system can, each with a caption file.
One run of one step with the bundled model; its log gives the time of each stage. Other programs disturb the clock, and
less so the processor time. Prints a table, and one line of JSON last.
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
from pathlib import Path
from typing import Any

from benchmarks.processor import processor_name
from benchmarks.scale_of_work import make_images


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000])
    options = parser.parse_args()
    rows = [measure(size) for size in options.sizes]
    print("| images | s to the summary | s to the end of the first step | processor s | load |")
    print("|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row['images']:,}", *(f"{row[key]:.1f}" for key in ("summary", "first_step", "processor", "load"))]
        print(f"| {' | '.join(cells)} |")
    print(json.dumps({"device": processor_name(), "rows": rows}))


def measure(size: int) -> dict[str, Any]:
    """Train one step on so many images in a new process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", size)
        for number, image in enumerate((folder / "images").rglob("*.jpg")):
            image.with_suffix(".txt").write_text(f"image number {number}")
        words = ["train", "--model_id", "demo", "--dataset", str(folder / "images"), "--recursive", "--output_dir"]
        words += [str(folder / "out"), "--trainer_args", "max_steps=1", "logging_steps=1"]
        return {"images": size, "load": os.getloadavg()[0]} | time_training(words, folder / "out" / "metrics.jsonl")


def time_training(words: list[str], metrics: Path) -> dict[str, float]:
    """Run the command; return the seconds to its summary and to its first line of metrics."""
    seconds: dict[str, float] = {}
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "florence2", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr

    def watch() -> None:
        while process.poll() is None and "first_step" not in seconds:
            if metrics.exists() and metrics.stat().st_size:
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
