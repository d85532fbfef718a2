"""All fifteen tasks by the command line: generated data, 200 steps of LoRA, predictions and scores.

    uv run python benchmarks/fifteen_tasks.py [--max_steps 200] [--num_eval_scenes 120] [--write]
    uv run python benchmarks/fifteen_tasks.py --eval_seed 6000000 --adapter DIR     to tune the recipe, on other scenes

The bundled model is trained on all tasks, mixed in one JSONL. It is evaluated before and after, on scenes that neither
its pre-training nor this training used. Prints a table, and one line of JSON last. A score is marked as worse if the
95% interval of its change, by bootstrap over images, is below zero.
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

TRAIN_SEED = 7_000_000  # scenes that the bundled model was not trained on
EVAL_SEED = 5_000_000  # the scenes of the bundled model's own scores
TRAIN_ARGS = "--lr_scheduler_type cosine --rank 8 --alpha 16 --dropout 0 --learning_rate 5e-5 --batch_size 8"
# More of the tasks with the lowest scores.
SAMPLING_WEIGHTS = ["--sampling_weights", "referring_expression_segmentation=3", "region_to_segmentation=3"]
# The metric of each task in the table is the first of these; the JSON has all.
MAIN_METRICS = ("exact_match", "accuracy", "word_accuracy", "mAP", "f1", "recall@0.5", "mIoU")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Parse the command line, train, evaluate and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--num_train_scenes", type=int, default=240)
    parser.add_argument("--num_eval_scenes", type=int, default=120)
    parser.add_argument("--eval_seed", type=int, default=EVAL_SEED, help="seed of the first scene to evaluate on")
    parser.add_argument("--train_args", default=TRAIN_ARGS, help="flags of `florence2 train`")
    parser.add_argument(
        "--adapter", type=Path, help="output folder of the training; an adapter that is there already is used as it is"
    )
    parser.add_argument("--write", action="store_true", help="also write the table under benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scores_by_task = train_and_compare(Path(name), options)
    run = {
        "command": " ".join(["python", "benchmarks/fifteen_tasks.py", *sys.argv[1:]]),
        "train_args": f"{options.train_args} {' '.join(SAMPLING_WEIGHTS)}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    table = "\n".join(table_rows(scores_by_task))
    report = json.dumps({**run, "tasks": scores_by_task})
    if options.write:
        write_result(run, table, report)
    print(table)
    print(report)


def train_and_compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train, predict with both models, and return the scores of each task before and after with their change."""
    train_set = mix_tasks(make_dataset(folder / "train", options.num_train_scenes, TRAIN_SEED))
    eval_set = mix_tasks(make_dataset(folder / "eval", options.num_eval_scenes, options.eval_seed))
    adapter, scores = options.adapter or folder / "adapter", folder / "scores.json"
    if not adapter.exists():
        train = ["train", "--model_id", "demo", "--dataset", str(train_set), "--output_dir", str(adapter)]
        max_steps = ["--trainer_args", f"max_steps={options.max_steps}"]
        florence2(*train, *max_steps, *options.train_args.split(), *SAMPLING_WEIGHTS)
    predictions = [str(folder / f"{name}.jsonl") for name in ("bundled", "trained")]
    for model, file in zip(("demo", str(adapter)), predictions, strict=True):
        data = ["--input_path", str(eval_set), "--output_path", file]
        florence2("predict", "--model_path", model, *data, "--dtype", "float32")  # the same on every CPU
    florence2("evaluate", "--references", str(eval_set), "--compare", *predictions, "--output_path", str(scores))
    scores_by_task: dict[str, Any] = json.loads(scores.read_text(encoding="utf-8"))["tasks"]
    assert set(scores_by_task) == {task.name for task in TASKS}
    return scores_by_task


def mix_tasks(folder: Path) -> Path:
    """Write the rows of all tasks of a folder to one file."""
    rows = [line for task in TASKS for line in (folder / f"{task.name}.jsonl").read_text("utf-8").splitlines()]
    file = folder / "mixed.jsonl"
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return file


def florence2(*arguments: str) -> None:
    """Run one command in its own process."""
    subprocess.run([sys.executable, "-m", "florence2", *arguments], check=True, env=dict(os.environ))


def table_rows(scores_by_task: dict[str, Any]) -> list[str]:
    """Return the rows of the table, one for each task."""
    rows = ["| task | examples | metric | bundled | trained | change | 95% interval |  |", "|---" * 8 + "|"]
    for task in TASKS:
        scores = scores_by_task[task.name]["scores"]
        metric = next((each for each in MAIN_METRICS if each in scores), next(iter(scores)))
        before, after, change = (scores[metric][side] for side in ("a", "b", "change"))
        interval = "-" if change["low"] is None else f"{change['low']:+.3f} to {change['high']:+.3f}"
        is_worse = change["high"] is not None and change["high"] < 0
        values = [f"{before['value']:.3f}", f"{after['value']:.3f}", f"{change['value']:+.3f}"]
        cells = [task.name, f"{scores_by_task[task.name]['examples']:,}", metric, *values, interval]
        rows.append(f"| {' | '.join([*cells, 'worse' if is_worse else ''])} |")
    return rows


def write_result(run: dict[str, str], table: str, report: str) -> None:
    """Write table and JSON to a file with the date of the run."""
    RESULTS.mkdir(exist_ok=True)
    title = "# All fifteen tasks: the bundled model before and after some steps of LoRA"
    about = f"{run['date']}, torch {run['torch']}: `{run['command']}` (`{run['train_args']}`)"
    text = "\n\n".join([title, about, table, f"```json\n{report}\n```\n"])
    (RESULTS / f"{run['date'][:10]}-fifteen-tasks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
