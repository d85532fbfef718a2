"""`florence2 demo`: teach the bundled model a new caption style, offline, and show what came of it.

Every step is a command that the reader can type on pictures of their own; it is shown before it is run. Knows the
recipes and the scenes.
"""

import json
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from florence2 import settings_io as settings
from florence2.config import DemoSettings, PredictSettings, TrainSettings
from florence2.demo.dataset import make_dataset
from florence2.demo.page import DemoResult, write_page
from florence2.errors import UserError
from florence2.log import logger, render_text
from florence2.recipes.predict import predict
from florence2.recipes.train import train

STYLE = "tags"  # what the bundled model was not taught
LEARNT, HELD_OUT = 48, 16
TASK = "caption"
# Few pictures, many passes: what suits a small model and a caption style of one template.
RECIPE: dict[str, Any] = {
    "epochs": 60,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "rank": 8,
    "dropout": 0.1,
    "freeze": "vision",  # it sees well already, so pictures are looked at once and not 60 times
}


def main(given: DemoSettings) -> int:
    """Run `florence2 demo`: write a dataset where one is asked for, else show fine-tuning from first to last."""
    if given.make_dataset:
        made = make_dataset(given.make_dataset, given.num_samples, given.seed, given.style)
        logger.info(f"{given.num_samples} pictures, their captions and a JSONL for every task are in {made}")
        return 0
    return demonstrate(Path(given.output_dir), given.seed)


def demonstrate(folder: Path, seed: int) -> int:
    """Caption, fine-tune, caption again; print the scores and leave a page. Returns 0 if the new style was learnt."""
    began = time.monotonic()
    _clear(folder)
    dataset = make_dataset(folder / "train", LEARNT, seed, STYLE)
    held = make_dataset(folder / "held_out", HELD_OUT, seed + LEARNT, STYLE)
    logger.info(
        f"{LEARNT} pictures to learn from are in {dataset}, {HELD_OUT} others in {held}; captions are comma-separated"
    )
    adapter = str(folder / "adapter")
    asked = {"input_path": str(held), "task": TASK, "batch_size": 8}

    _predict({"model_path": "demo", "output_path": str(folder / "before.jsonl"), **asked})
    _train({"dataset": str(dataset), "output_dir": adapter, "model_id": "demo", "task": TASK, **RECIPE})
    _predict({"model_path": adapter, "output_path": str(folder / "captions.jsonl"), **asked})
    _predict({"model_path": "demo", "output_path": str(folder / "boxes.jsonl"), **asked, "task": "od"})

    shown = _shown(folder, held)
    _print_table(shown)
    page = write_page(folder / "index.html", shown, learnt=LEARNT, curve=folder / "adapter" / "training_curve.png")
    before, after = _exact([(s.truth, s.before) for s in shown]), _exact([(s.truth, s.after) for s in shown])
    logger.info(f"\nexact captions in the new style: {before} of {len(shown)} before, {after} of {len(shown)} after")
    logger.info(f"look at {page}; the adapter is in {adapter} ({time.monotonic() - began:.0f} s in all)")
    return 0 if after > before else 1


def _clear(folder: Path) -> None:
    """Take away what an earlier demo left; anything else is not ours to touch."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "before.jsonl").exists():
        raise UserError(f"{folder} is not empty, and no demo made it", "pass another `--output_dir`")
    shutil.rmtree(folder, ignore_errors=True)


def _predict(values: dict[str, Any]) -> None:
    _show("predict", values)
    predict(settings.settings_from_dict(PredictSettings, {**values, "if_exists": "overwrite"}))


def _train(values: dict[str, Any]) -> None:
    _show("train", values)
    train(settings.settings_from_dict(TrainSettings, values))


def _show(verb: str, values: dict[str, Any]) -> None:
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    logger.info(f"\n$ florence2 {verb} {shlex.join(words)}")


def _shown(folder: Path, held: Path) -> list[DemoResult]:
    """Put side by side what is true of the held-out pictures and what was said about them."""
    before, after, boxes = (_read(folder / f"{name}.jsonl") for name in ("before", "captions", "boxes"))
    return [
        DemoResult(
            image=held / name,
            truth=(held / name).with_suffix(".txt").read_text(encoding="utf-8").strip(),
            before=before[name]["text"],
            after=after[name]["text"],
            boxes=boxes[name]["answer"],
        )
        for name in sorted(after)
    ]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["file_name"]: row for row in rows}


def _exact(pairs: list[tuple[str, str]]) -> int:
    return sum(truth == said for truth, said in pairs)


def _print_table(shown: list[DemoResult]) -> None:
    table = Table("picture", "before", "after", "", title="held-out pictures")
    for each in shown:
        table.add_row(each.image.name, each.before, each.after, "=" if each.after == each.truth else each.truth)
    logger.info(render_text(table))
