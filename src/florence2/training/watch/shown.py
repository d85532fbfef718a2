"""What is seen of a training: a bar on stderr, a file of reports, and what the model says about a few pictures.

Callbacks of transformers' trainer. Knows neither model nor settings.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState

from florence2.training.watch.curve import METRICS, Metrics, save

SAMPLES = "samples.jsonl"
PLAIN_EVERY = 10.0  # seconds between lines where no bar can be drawn
RATE_OVER = 20  # steps


class Bar(TrainerCallback):  # type: ignore[misc]
    """Show steps, loss, pictures per second and the time that is left, as a bar or, without a terminal, as lines."""

    def __init__(self, console: Console, per_step: int) -> None:
        self.console = console
        self.per_step = per_step
        self.loss = ""
        self.times: list[float] = []
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.told = 0.0

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Begin at the step that is resumed."""
        self.times = [time.monotonic()]
        self.told = time.monotonic()
        if state.is_world_process_zero and self.console.is_terminal:
            shown = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*shown, console=self.console)
            self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_log(self, _: Any, state: TrainerState, *__: Any, logs: Any = None, **___: Any) -> None:
        """Remember the newest loss; a measurement gets a line of its own."""
        logs = logs or {}
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.4f}"
        if "eval_loss" in logs and state.is_world_process_zero:
            self.console.print(f"step {state.global_step}: eval loss {logs['eval_loss']:.4f}", highlight=False)

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Move on by one step."""
        self.times = [*self.times, time.monotonic()][-RATE_OVER - 1 :]
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=state.global_step, description=self._words())
        elif state.is_world_process_zero and time.monotonic() - self.told > PLAIN_EVERY:
            self.told = time.monotonic()
            left = (state.max_steps - state.global_step) * self._seconds()
            words = f"step {state.global_step}/{state.max_steps}: {self._words()}, {left:.0f} s left"
            self.console.print(words, highlight=False)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Take the bar away."""
        self.close()

    def close(self) -> None:
        """Take the bar away, however training ended."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _seconds(self) -> float:
        return (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)

    def _words(self) -> str:
        return f"{self.loss}  {self.per_step / max(self._seconds(), 1e-9):.2f} pictures/s".strip()


class Reports(TrainerCallback):  # type: ignore[misc]
    """Write every report of the trainer to `metrics.jsonl`, and the curve at each checkpoint."""

    def __init__(self, folder: Path, per_step: int) -> None:
        self.metrics = Metrics(folder / METRICS)
        self.per_step = per_step
        self.began = (0.0, 0)

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Forget the reports behind the step that is resumed."""
        self.began = (time.monotonic(), state.global_step)
        if state.is_world_process_zero:
            self.metrics.path.parent.mkdir(parents=True, exist_ok=True)
            self.metrics.cut(state.global_step)

    def on_log(self, _: Any, state: TrainerState, *__: Any, logs: Any = None, **___: Any) -> None:
        """Append a report."""
        logs = {name: _plain(value) for name, value in (logs or {}).items() if not isinstance(value, str)}
        if not state.is_world_process_zero or "train_runtime" in logs or not logs.keys() - {"epoch"}:
            return
        row = {"step": state.global_step} | logs
        if "loss" in logs:
            seconds, steps = time.monotonic() - self.began[0], state.global_step - self.began[1]
            row["pictures_per_second"] = round(steps * self.per_step / max(seconds, 1e-9), 3)
        self.metrics.add(row)

    def on_save(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Draw the curve anew."""
        if state.is_world_process_zero:
            save(self.metrics.path.parent)


class Samples(TrainerCallback):  # type: ignore[misc]
    """Write what the model says about the same few pictures, every so many epochs or steps, and tell the trackers.

    `say` gives (file name, words) for each; `tell` is the trainer's own way to its trackers.
    """

    def __init__(
        self,
        say: Callable[[], list[tuple[str, str]]],
        tell: Callable[[dict[str, str]], None],
        folder: Path,
        epochs: int | None,
        steps: int | None,
    ) -> None:
        self.say = say
        self.tell = tell
        self.path = folder / SAMPLES
        self.epochs = epochs
        self.steps = steps

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Ask at every so many steps."""
        if self.steps and state.global_step % self.steps == 0:
            self._ask(state)

    def on_epoch_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Ask at every so many epochs."""
        if self.epochs and round(state.epoch or 0) % self.epochs == 0:
            self._ask(state)

    def _ask(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        with torch.random.fork_rng():
            said = self.say()
        with self.path.open("a", encoding="utf-8") as file:
            for name, text in said:
                row = {"step": state.global_step, "file_name": name, "text": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.tell({f"samples/{name}": text for name, text in said})


def _plain(value: Any) -> Any:
    number = value.item() if isinstance(value, torch.Tensor) else value
    return round(number, 8) if isinstance(number, float) else number
