"""The table of `florence2 export`: size, time to load and difference of every target and dtype.

    python -m benchmarks.export_table [--model_path demo] [--num_rounds 3]

Each export is a process of its own, as a user runs it; the time to load is the smallest of the rounds. Images for the
comparison and for the calibration of 8 bits are scenes that the bundled model was not trained on. Prints Markdown.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from florence2.demo.dataset import make_dataset
from florence2.export.export_targets import TARGETS

FIRST_SCENE = 5_000_000


def main() -> None:
    """Export to every target that needs no adapter, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model_path", default="demo")
    parser.add_argument("--num_rounds", type=int, default=3)
    options = parser.parse_args()
    print("| `--to` | `--dtype` | size | loaded in | largest difference of logits | equal tokens |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        images = make_dataset(Path(name) / "images", num_samples=32, seed=FIRST_SCENE)
        for target in TARGETS.values():
            for dtype in () if target.is_adapter else target.dtypes:
                output = Path(name) / f"{target.name}-{dtype}"
                command = ["--model_path", options.model_path, "--to", target.name, "--dtype", dtype]
                command += ["--images", str(images), "--output_path", str(output), "--overwrite"]
                rounds = [export(command) for _ in range(options.num_rounds)]
                print(row(target.name, dtype, rounds), flush=True)


def export(arguments: list[str]) -> dict[str, Any]:
    """Run one export and return its result."""
    command = [sys.executable, "-m", "florence2", "export", *arguments, "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def row(target: str, dtype: str, rounds: list[dict[str, Any]]) -> str:
    """Write one row of the table."""
    comparison, seconds = rounds[0]["comparison"], min(each["load_seconds"] for each in rounds)
    size, difference = f"{rounds[0]['num_bytes'] / 1e6:.1f} MB", f"{comparison['max_difference']:.2g}"
    equal = f"{comparison['num_equal_tokens']} of {comparison['num_tokens']}"
    return f"| {target} | {dtype} | {size} | {seconds:.2f} s | {difference} | {equal} |"


if __name__ == "__main__":
    main()
