"""`florence2 demo`: fine-tune the bundled model on a new caption style, offline, and compare the captions.

It runs the recipes on generated scenes, and prints each step as a command that the user can run on other images.
"""

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from florence2.api import predict, train
from florence2.config import DemoSettings
from florence2.demo.dataset import make_dataset
from florence2.demo.page import DemoResult, write_page
from florence2.errors import UserError
from florence2.log import log_lines, logger, render_lines
from florence2.model.answer import Answer

STYLE = "tags"  # not among the pre-training tasks of the bundled model
NUM_TRAIN_IMAGES, NUM_EVAL_IMAGES = 48, 16
TASK = "caption"
# Few images and many epochs, for a small model and a caption style with one template.
RECIPE: dict[str, Any] = {
    "epochs": 60,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "rank": 8,
    "dropout": 0.1,
    "freeze": "vision",  # its features are good already; frozen, they are computed once instead of 60 times
}


def main(settings: DemoSettings) -> int:
    """Run `florence2 demo`: write a dataset if one is requested, else fine-tune and show the result."""
    if settings.make_dataset:
        folder = make_dataset(settings.make_dataset, settings.num_samples, settings.seed, settings.style)
        logger.info(f"wrote {settings.num_samples} images, their captions and a JSONL for every task to {folder}")
        return 0
    return run_demo(Path(settings.output_dir), settings.seed)


def run_demo(folder: Path, seed: int) -> int:
    """Caption, fine-tune, caption again, and write a page; return 0 if more captions are exact than before."""
    start = time.monotonic()
    _remove_earlier_demo(folder)
    dataset = make_dataset(folder / "train", NUM_TRAIN_IMAGES, seed, STYLE)
    eval_folder = make_dataset(folder / "held_out", NUM_EVAL_IMAGES, seed + NUM_TRAIN_IMAGES, STYLE)
    logger.info(f"{NUM_TRAIN_IMAGES} training images with comma-separated captions: {dataset}")
    logger.info(f"{NUM_EVAL_IMAGES} held-out images: {eval_folder}")
    adapter = str(folder / "adapter")
    inputs = {"input_path": str(eval_folder), "task": TASK, "batch_size": 8}

    _predict({"model_path": "demo", "output_path": str(folder / "before.jsonl"), **inputs})
    _train({"dataset": str(dataset), "output_dir": adapter, "model_id": "demo", "task": TASK, **RECIPE})
    _predict({"model_path": adapter, "output_path": str(folder / "captions.jsonl"), **inputs})
    _predict({"model_path": "demo", "output_path": str(folder / "boxes.jsonl"), **inputs, "task": "od"})

    results = _read_results(folder, eval_folder)
    _print_table(results)
    page = write_page(
        folder / "index.html",
        results,
        num_train_images=NUM_TRAIN_IMAGES,
        loss_curve=folder / "adapter" / "training_curve.png",
    )
    before, after = (
        sum(result.reference == text for result, text in zip(results, texts, strict=True))
        for texts in ([result.before for result in results], [result.after for result in results])
    )
    number = len(results)
    log_lines(["", f"exact captions in the new style: {before} of {number} before, {after} of {number} after"])
    logger.info(f"page: {page}, adapter: {adapter} ({time.monotonic() - start:.0f} s in total)")
    return 0 if after > before else 1


def _remove_earlier_demo(folder: Path) -> None:
    """Remove the output of an earlier demo; refuse any other folder that has files."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "before.jsonl").exists():
        raise UserError(f"{folder} is not empty, and no demo wrote it", "pass another `--output_dir`")
    shutil.rmtree(folder, ignore_errors=True)


def _predict(values: dict[str, Any]) -> None:
    _print_command("predict", values)
    predict(**values, overwrite_output=True)


def _train(values: dict[str, Any]) -> None:
    _print_command("train", values)
    train(**values)


def _print_command(name: str, values: dict[str, Any]) -> None:
    arguments = [argument for flag, value in values.items() for argument in (f"--{flag}", str(value))]
    log_lines(["", f"$ florence2 {name} {shlex.join(arguments)}"])


def _read_results(folder: Path, eval_folder: Path) -> list[DemoResult]:
    """Read the predictions for the held-out images, and their references."""
    before, after, boxes = (_read_jsonl(folder / f"{name}.jsonl") for name in ("before", "captions", "boxes"))
    return [
        DemoResult(
            image=eval_folder / name,
            reference=(eval_folder / name).with_suffix(".txt").read_text(encoding="utf-8").strip(),
            before=before[name]["text"],
            after=after[name]["text"],
            boxes=Answer.from_dict(boxes[name]["answer"]),
        )
        for name in sorted(after)
    ]


def _read_jsonl(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["file_name"]: row for row in rows}


def _print_table(results: Sequence[DemoResult]) -> None:
    table = Table("image", "before", "after", "reference", title="held-out images")
    for result in results:
        is_correct = result.after == result.reference
        table.add_row(result.image.name, result.before, result.after, "=" if is_correct else result.reference)
    log_lines(render_lines(table))
