"""What happens between the steps: a bar, the file of reports, the rhythm of saving, broken steps, being asked to stop.

Each is one callback of transformers' trainer. Everything shown goes to stderr. Knows neither model nor settings.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from florence2.training.watch.curve import METRICS, Metrics, save

BROKEN_IN_A_ROW = 20  # steps without a finite gradient, after which training stops
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

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, logs: Any = None, **__: Any) -> None:
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

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, logs: Any = None, **__: Any) -> None:
        """Append a report."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        row = {"step": state.global_step} | {name: _plain(value) for name, value in logs.items()}
        if "loss" in logs:
            seconds, steps = time.monotonic() - self.began[0], state.global_step - self.began[1]
            row["pictures_per_second"] = round(steps * self.per_step / max(seconds, 1e-9), 3)
        self.metrics.add(row)

    def on_save(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Draw the curve anew."""
        if state.is_world_process_zero:
            save(self.metrics.path.parent)


class Rhythm(TrainerCallback):  # type: ignore[misc]
    """Save every so many epochs, beside or instead of transformers' own rhythm; the last epoch is always saved."""

    def __init__(self, epochs: int | None) -> None:
        self.epochs = epochs

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Let an epoch pass without saving and measuring, where it is not its turn."""
        if self.epochs is None:
            return control
        due = round(state.epoch or 0) % self.epochs == 0
        if args.save_strategy == "epoch":
            control.should_save &= due or state.global_step >= state.max_steps
            control.should_evaluate &= control.should_save
        elif due:
            control.should_save = True
        return control


class BrokenSteps(TrainerCallback):  # type: ignore[misc]
    """Leave out steps whose gradients are not finite: weights stay as they were. After too many in a row, stop."""

    def __init__(self, limit: int = BROKEN_IN_A_ROW) -> None:
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0

    @property
    def too_many(self) -> bool:
        """Tell whether training was stopped for this."""
        return self.in_a_row >= self.limit

    def on_pre_optimizer_step(
        self,
        _: Any,
        __: Any,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer,
        **___: Any,
    ) -> TrainerControl:
        """Drop the gradients of a broken step, so that the optimizer moves nothing."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        grads = [weight.grad for weight in weights if weight.grad is not None]
        if math.isfinite(torch.nn.utils.get_total_norm(grads).item()):
            self.in_a_row = 0
            return control
        self.skipped += 1
        self.in_a_row += 1
        for weight in weights:
            weight.grad = None
        if self.too_many:
            control.should_save = control.should_training_stop = True
        return control


class StopAsked(TrainerCallback):  # type: ignore[misc]
    """Turn SIGTERM and Ctrl-C into a checkpoint and an end; a second one ends at once.

    A context manager: the signals are ours inside it, and only where Python lets us have them, in the main thread.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = True

    def on_step_end(self, args: TrainingArguments, _: Any, control: TrainerControl, **__: Any) -> TrainerControl:
        """Save and stop, all processes at the same step."""
        if args.world_size > 1:
            asked = torch.tensor(float(self.asked), device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.asked = bool(asked.item())
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control


class Samples(TrainerCallback):  # type: ignore[misc]
    """Show what the model says about the same few pictures, every so many epochs or steps."""

    def __init__(self, show: Callable[[int], None], epochs: int | None, steps: int | None) -> None:
        self.show = show
        self.epochs = epochs
        self.steps = steps

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Show at every so many steps."""
        if self.steps and state.global_step % self.steps == 0 and state.is_world_process_zero:
            self.show(state.global_step)

    def on_epoch_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Show at every so many epochs."""
        if self.epochs and round(state.epoch or 0) % self.epochs == 0 and state.is_world_process_zero:
            self.show(state.global_step)


class Watch:
    """All of it around one training; a context manager, because signals and the bar must be given back."""

    def __init__(self, console: Console, folder: Path, epochs: int | None) -> None:
        self.console = console
        self.folder = folder
        self.broken = BrokenSteps()
        self.stop = StopAsked()
        self.rhythm = Rhythm(epochs)
        self.bar: Bar | None = None

    def __enter__(self) -> Self:
        self.stop.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop.__exit__(*problem)
        if self.bar is not None:
            self.bar.close()

    def callbacks(self, per_step: int) -> list[TrainerCallback]:
        """Give the callbacks for a training whose steps take so many pictures."""
        self.bar = Bar(self.console, per_step)
        return [self.rhythm, self.broken, self.stop, self.bar, Reports(self.folder, per_step)]


def _plain(value: Any) -> Any:
    number = value.item() if isinstance(value, torch.Tensor) else value
    return round(number, 8) if isinstance(number, float) else number
