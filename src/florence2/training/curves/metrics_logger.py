"""Log of a run on disk: `metrics.jsonl` and the plot of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from florence2.files import atomic_write, parse_json, to_json
from florence2.training.curves.loss_plot import draw_plot

METRICS_FILE = "metrics.jsonl"
PLOT_FILE = "training_curve.png"


@dataclass(frozen=True)
class MetricsFile:
    """A JSONL file of logged values, ordered by step."""

    path: Path

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(row))

    def rows(self) -> list[dict[str, Any]]:
        """Read all rows; skip a line that a kill has cut."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_bytes().split(b"\n"):  # a kill may cut a character, and a text may hold line breaks
            try:
                rows.append(parse_json(line))
            except ValueError:
                continue
        return rows

    def truncate(self, step: int) -> None:
        """Remove the rows after a step, because training resumes there."""
        if not self.path.exists():
            return
        rows = [row for row in self.rows() if row.get("step", 0) <= step]
        with atomic_write(self.path) as file:
            file.writelines(map(_line, rows))


class MetricsLogger(TrainerCallback):  # type: ignore[misc]
    """Writes what the trainer logs to `metrics.jsonl`, and plots it at each checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = MetricsFile(folder / METRICS_FILE)

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Remove the rows after the step of the checkpoint."""
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.metrics.truncate(state.global_step)

    def on_log(self, _: Any, state: TrainerState, *__: Any, logs: Any = None, **___: Any) -> None:
        """Append the logged numbers."""
        logs = {name: _number(value) for name, value in (logs or {}).items() if not isinstance(value, str)}
        if not state.is_world_process_zero or "train_runtime" in logs or not logs.keys() - {"epoch"}:
            return
        self.metrics.add({"step": state.global_step} | logs)

    def on_save(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Update the plot."""
        if state.is_world_process_zero:
            save_plot(self.folder)


def save_plot(folder: Path) -> None:
    """Plot the `metrics.jsonl` of a folder beside it."""
    image = draw_plot(MetricsFile(folder / METRICS_FILE).rows())
    if image is not None:
        image.save(folder / PLOT_FILE)


def _line(row: Mapping[str, Any]) -> str:
    return to_json(dict(row)) + "\n"


def _number(value: Any) -> Any:
    number = value.item() if isinstance(value, torch.Tensor) else value
    return round(number, 8) if isinstance(number, float) else number
