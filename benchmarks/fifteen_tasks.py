"""All fifteen tasks: data from the generator, 200 steps of LoRA, predictions and scores, all by the command line.

    uv run python benchmarks/fifteen_tasks.py [--steps 200] [--held_out 120] [--write]
    uv run python benchmarks/fifteen_tasks.py --first 6000000 --adapter DIR     to choose a recipe, on other scenes

The bundled model learns all tasks, mixed in one JSONL, and is asked about scenes that neither it nor the training saw;
so is the model as it is bundled. Prints one table, and one line of JSON last. A score that falls is marked where its
95% interval (of the change, over pictures drawn anew) leaves out zero.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from florence2.demo.dataset import make_dataset
from florence2.model.tasks import TASKS

TRAINED_SEED = 7_000_000  # scenes that the bundled model did not learn from
HELD_OUT_SEED = 5_000_000  # those that its own scores come from
RECIPE = "--lr_scheduler_type cosine --rank 8 --alpha 16 --dropout 0 --learning_rate 5e-5 --batch_size 8"
MIX = [
    "--sampling_weights",
    "referring_expression_segmentation=3",
    "region_to_segmentation=3",
]  # where there is most to gain
# What a task is told by in one number; all others are in the JSON.
HEADLINE = ("exact_match", "accuracy", "word_accuracy", "mAP", "f1", "recall@0.5", "mIoU")
WRITTEN = Path(__file__).parent / "results"


def main() -> None:
    """Do all of it and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=240, help="scenes to learn from")
    parser.add_argument("--held_out", type=int, default=120, help="scenes to be scored on")
    parser.add_argument("--first", type=int, default=HELD_OUT_SEED, help="number of the first scene to be scored on")
    parser.add_argument("--recipe", default=RECIPE, help="flags of `florence2 train`")
    parser.add_argument(
        "--adapter", type=Path, help="where the training leaves its result; what is there is not trained again"
    )
    parser.add_argument("--write", action="store_true", help="also write the table under benchmarks/results/")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        changes = measure(Path(name), given)
    about = {
        "command": " ".join(["python", "benchmarks/fifteen_tasks.py", *sys.argv[1:]]),
        "recipe": f"{given.recipe} {' '.join(MIX)}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    table = "\n".join(rows(changes))
    told = json.dumps({**about, "tasks": changes})
    if given.write:
        write(about, table, told)
    print(table)
    print(told)


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Train, ask both models, and give the scores of each task: before, after, and the change."""
    dataset = mixed(make_dataset(folder / "lessons", given.scenes, TRAINED_SEED))
    held = mixed(make_dataset(folder / "held", given.held_out, given.first))
    adapter, scores = given.adapter or folder / "adapter", folder / "scores.json"
    if not adapter.exists():
        told = ["--dataset", str(dataset), "--output_dir", str(adapter), "--trainer_args", f"max_steps={given.steps}"]
        florence2("train", "--model_id", "demo", *told, *given.recipe.split(), *MIX)
    said = [str(folder / f"{each}.jsonl") for each in ("bundled", "trained")]
    for model, file in zip(("demo", str(adapter)), said, strict=True):
        asked = ["--input_path", str(held), "--output_path", file, "--dtype", "float32"]  # the same on every CPU
        florence2("predict", "--model_path", model, *asked)
    florence2("evaluate", "--references", str(held), "--compare", *said, "--output_path", str(scores))
    found: dict[str, Any] = json.loads(scores.read_text(encoding="utf-8"))["tasks"]
    assert set(found) == {task.name for task in TASKS}
    return found


def mixed(folder: Path) -> Path:
    """Put all tasks of a folder into one file."""
    rows = [line for task in TASKS for line in (folder / f"{task.name}.jsonl").read_text("utf-8").splitlines()]
    file = folder / "mixed.jsonl"
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return file


def florence2(*words: str) -> None:
    """Run one command as its own process."""
    subprocess.run([sys.executable, "-m", "florence2", *words], check=True, env=dict(os.environ))


def rows(changes: dict[str, Any]) -> list[str]:
    """Write the table, a row for each task."""
    written = ["| task | questions | score | bundled | trained | change | 95% interval |  |", "|---" * 8 + "|"]
    for task in TASKS:
        scores = changes[task.name]["scores"]
        name = next((each for each in HEADLINE if each in scores), next(iter(scores)))
        a, b, change = (scores[name][side] for side in ("a", "b", "change"))
        between = "-" if change["low"] is None else f"{change['low']:+.3f} to {change['high']:+.3f}"
        fell = "fell" if change["high"] is not None and change["high"] < 0 else ""
        cells = [task.name, f"{changes[task.name]['questions']:,}", name, *(f"{each['value']:.3f}" for each in (a, b))]
        written.append(f"| {' | '.join([*cells, format(change['value'], '+.3f'), between, fell])} |")
    return written


def write(about: dict[str, str], table: str, told: str) -> None:
    """Write the result under its date."""
    WRITTEN.mkdir(exist_ok=True)
    parts = ["# All fifteen tasks: the bundled model, and some steps of LoRA later"]
    parts.append(f"{about['date']}, torch {about['torch']}: `{about['command']}` (`{about['recipe']}`)")
    text = "\n\n".join([*parts, table, f"```json\n{told}\n```\n"])
    (WRITTEN / f"{about['date'][:10]}-fifteen-tasks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
