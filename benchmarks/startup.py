"""Time to the first caption: `florence2 predict`, `florence2.Florence2`, and a plain transformers script, alternating.

    python -m benchmarks.startup
    python -m benchmarks.startup --model_path /path/to/Florence-2-base-ft --num_rounds 3

Every run is a new process; the first round fills the disk's cache and does not count. The rival is the shortest
script that captions one image. Other programs on the machine disturb the clock, and less so the processor time of a
run, which is measured beside it. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.jpegs import make_images
from benchmarks.processor import processor_name

Duration = tuple[float, float]  # seconds by the clock, and of the processor
DEMO = Path(__file__).parents[1] / "src" / "florence2" / "demo" / "model"
PLAIN = """
import sys
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

folder, image = sys.argv[1:3]
processor = AutoProcessor.from_pretrained(folder)
model = Florence2ForConditionalGeneration.from_pretrained(folder).eval()
inputs = processor(text="<CAPTION>", images=Image.open(image).convert("RGB"), return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=256, num_beams=1)
print(processor.batch_decode(ids, skip_special_tokens=True)[0])
"""
PYTHON = """
import sys
import florence2

print(florence2.Florence2(sys.argv[1], dtype="float32")(sys.argv[2], "caption").text)
"""


def main() -> None:
    """Run all in turn and print the times."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        image = make_images(Path(folder), 1)[0]
        seconds: dict[str, list[Duration]] = {"ours": [], "python": [], "transformers": []}
        for number in range(options.num_rounds + 1):
            for name, times in seconds.items():
                taken = time_process(command(name, options.model_path, image, folder), options.num_threads)
                text = f"{taken[0]:6.2f} s, processor {taken[1]:6.2f} s (load {os.getloadavg()[0]:.2f})"
                print(f"round {number}: {name:12} {text}", file=sys.stderr)
                if number:
                    times.append(taken)
    report = summary(options, seconds)
    print(table(report))
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_path", default=str(DEMO), help="folder in transformers' layout (default: the bundled model)"
    )
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument("--num_threads", type=int, default=2)
    return parser.parse_args()


def command(name: str, model_path: str, image: str, folder: str) -> list[str]:
    """Return the command of a contestant."""
    if name == "transformers":
        return [sys.executable, "-c", PLAIN, model_path, image]
    if name == "python":
        return [sys.executable, "-c", PYTHON, model_path, image]
    arguments = ["--model_path", model_path, "--input_path", image, "--dtype", "float32", "--overwrite_output"]
    return [sys.executable, "-m", "florence2", "predict", *arguments, "--output_path", f"{folder}/captions.jsonl"]


def time_process(arguments: list[str], num_threads: int) -> Duration:
    """Run a process to its end; return its seconds by the clock, and those of the processor."""
    environment = os.environ | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
    before, start = os.times(), time.perf_counter()
    subprocess.run(arguments, env=environment, check=True, capture_output=True)
    after, end = os.times(), time.perf_counter()
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return end - start, user + system


def summary(options: argparse.Namespace, seconds: dict[str, list[Duration]]) -> dict[str, Any]:
    """Return the medians of the rounds, and the median of the ratios of each pair."""
    medians = {
        name: [statistics.median(times) for times in zip(*rounds, strict=True)] for name, rounds in seconds.items()
    }
    pairs = [
        (ours[0] / theirs[0], ours[1] / theirs[1])
        for ours, theirs in zip(seconds["ours"], seconds["transformers"], strict=True)
    ]
    ratios = [statistics.median(each) for each in zip(*pairs, strict=True)]
    return {
        "command": "python -m benchmarks.startup " + " ".join(sys.argv[1:]),
        "device": processor_name(),
        "threads": options.num_threads,
        "seconds": {name: each[0] for name, each in medians.items()},
        "processor_seconds": {name: each[1] for name, each in medians.items()},
        "times_as_long_as_transformers": ratios[0],
        "times_the_processor_seconds": ratios[1],
        "rounds": seconds,
    }


def table(report: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    lines = [
        f"# First caption: {report['device']}, {report['threads']} threads",
        "",
        f"Median of the pairs: {report['times_as_long_as_transformers']:.2f} of transformers' time, "
        f"{report['times_the_processor_seconds']:.2f} of its processor time.",
        "",
        "| | s to the first caption | rounds | processor s | rounds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, median in report["seconds"].items():
        clock, processor = (", ".join(f"{each[i]:.2f}" for each in report["rounds"][name]) for i in (0, 1))
        lines.append(f"| {name} | {median:.2f} | {clock} | {report['processor_seconds'][name]:.2f} | {processor} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
