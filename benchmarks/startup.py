"""From the command to the first caption of one picture: `florence2 predict` and a plain transformers script, in turns.

    python -m benchmarks.startup
    python -m benchmarks.startup --model /path/to/Florence-2-base-ft --rounds 3

Every turn is a new process; the first round fills the disk's cache and is not counted. The rival is the shortest
script that captions one picture. A table for people comes first, one line of JSON last.
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

from benchmarks.throughput import make_images, processor_name

DEMO = Path(__file__).parents[1] / "src" / "florence2" / "demo" / "model"
PLAIN = """
import sys
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration

folder, picture = sys.argv[1:3]
processor = AutoProcessor.from_pretrained(folder)
model = Florence2ForConditionalGeneration.from_pretrained(folder).eval()
inputs = processor(text="<CAPTION>", images=Image.open(picture).convert("RGB"), return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=256, num_beams=1)
print(processor.batch_decode(ids, skip_special_tokens=True)[0])
"""


def main() -> None:
    """Run everybody in turns and print what it took."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        image = make_images(Path(folder), 1)[0]
        seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
        for number in range(options.rounds + 1):
            for name, taken in seconds.items():
                took = timed(command(name, options.model, image, folder), options.threads)
                print(f"round {number}: {name:12} {took:6.2f} s (load {os.getloadavg()[0]:.2f})", file=sys.stderr)
                if number:
                    taken.append(took)
    report = summary(options, seconds)
    print(table(report))
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(DEMO), help="a folder in transformers' layout (default: the bundled model)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def command(name: str, model: str, image: str, folder: str) -> list[str]:
    """Word what a contestant runs."""
    if name == "transformers":
        return [sys.executable, "-c", PLAIN, model, image]
    words = ["--model_path", model, "--input_path", image, "--dtype", "float32", "--overwrite_output"]
    return [sys.executable, "-m", "florence2", "predict", *words, "--output_path", f"{folder}/captions.jsonl"]


def timed(words: list[str], threads: int) -> float:
    """Run a process to its end and give the seconds it took."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    subprocess.run(words, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def summary(options: argparse.Namespace, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Boil the rounds down to medians."""
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {
        "command": "python -m benchmarks.startup " + " ".join(sys.argv[1:]),
        "device": processor_name(),
        "threads": options.threads,
        "seconds": medians,
        "times_as_long_as_transformers": medians["ours"] / medians["transformers"],
        "rounds": seconds,
    }


def table(report: dict[str, Any]) -> str:
    """Lay the report out for people, in Markdown."""
    lines = [
        f"# First caption: {report['device']}, {report['threads']} threads",
        "",
        "| | s to the first caption | x transformers | rounds |",
        "| --- | --- | --- | --- |",
    ]
    for name, median in report["seconds"].items():
        rounds = ", ".join(f"{taken:.2f}" for taken in report["rounds"][name])
        lines.append(f"| {name} | {median:.2f} | {median / report['seconds']['transformers']:.2f} | {rounds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
