"""What is seen of a training: a bar on stderr and a file of reports.

Callbacks of transformers' trainer. Knows neither model nor settings.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState

from florence2.log import logger, progress_console
from florence2.training.callbacks.loss_plot import METRICS_FILE, MetricsFile, save_plot

PLAIN_EVERY = 10.0  # seconds between lines where no bar can be drawn
RATE_OVER = 20  # steps


class TrainingProgressBar(TrainerCallback):  # type: ignore[misc]
    """Show steps, loss, pictures per second and the time that is left, as a bar or, without a terminal, as lines."""

    def __init__(self, per_step: int) -> None:
        self.console = progress_console()
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
            logger.info(f"step {state.global_step}: {measured(logs)}")

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Move on by one step."""
        self.times = [*self.times, time.monotonic()][-RATE_OVER - 1 :]
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=state.global_step, description=self._words())
        elif state.is_world_process_zero and time.monotonic() - self.told > PLAIN_EVERY:
            self.told = time.monotonic()
            left = (state.max_steps - state.global_step) * self._seconds()
            words = f"step {state.global_step}/{state.max_steps}: {self._words()}, {left:.0f} s left"
            logger.info(words)

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


@contextmanager
def count_progress(what: str, number: int, before: int) -> Iterator[Callable[[int], None]]:
    """Show how many of so many are done, and the time that is left: a bar, or lines where there is no terminal."""
    console = progress_console()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    told = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=number, completed=before)

        def advance(more: int) -> None:
            nonlocal told
            bar.advance(task, more)
            if not console.is_terminal and time.monotonic() - told > PLAIN_EVERY:
                told = time.monotonic()
                row = bar.tasks[0]
                logger.info(f"{what}: {row.completed:,.0f} of {number:,}, {row.time_remaining or 0:.0f} s left")

        yield advance


class Throughput(TrainerCallback):  # type: ignore[misc]
    """Know when training began, and so how many steps it takes in a second."""

    def __init__(self) -> None:
        self.began = (time.monotonic(), 0)

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Begin to count."""
        self.began = (time.monotonic(), state.global_step)

    def of(self, state: TrainerState) -> float:
        """Give the steps of a second, since training began or was resumed."""
        steps = int(state.global_step) - self.began[1]
        return steps / max(time.monotonic() - self.began[0], 1e-9)


class MetricsLogger(TrainerCallback):  # type: ignore[misc]
    """Write every report of the trainer to `metrics.jsonl`, and the curve at each checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.metrics = MetricsFile(folder / METRICS_FILE)

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Forget the reports behind the step that is resumed."""
        if state.is_world_process_zero:
            self.metrics.path.parent.mkdir(parents=True, exist_ok=True)
            self.metrics.cut(state.global_step)

    def on_log(self, _: Any, state: TrainerState, *__: Any, logs: Any = None, **___: Any) -> None:
        """Append a report."""
        logs = {name: _plain(value) for name, value in (logs or {}).items() if not isinstance(value, str)}
        if not state.is_world_process_zero or "train_runtime" in logs or not logs.keys() - {"epoch"}:
            return
        self.metrics.add({"step": state.global_step} | logs)

    def on_save(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Draw the curve anew."""
        if state.is_world_process_zero:
            save_plot(self.metrics.path.parent)


def measured(logs: Mapping[str, Any]) -> str:
    """Word a measurement: eval loss and scores."""
    clock = ("_runtime", "_per_second")  # how long it took is no score
    kept = {name: value for name, value in logs.items() if name.startswith("eval_") and not name.endswith(clock)}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in kept.items())


def _plain(value: Any) -> Any:
    number = value.item() if isinstance(value, torch.Tensor) else value
    return round(number, 8) if isinstance(number, float) else number
