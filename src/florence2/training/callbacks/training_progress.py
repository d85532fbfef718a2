"""Progress of training and of preprocessing on stderr: a bar on a terminal, else lines, later one a minute."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from florence2.devices import gpu_memory
from florence2.log import line_interval, logger, progress_console

SECONDS_BETWEEN_LINES = 10.0  # in the first minute
THROUGHPUT_WINDOW = 20  # steps


class TrainingProgressBar(TrainerCallback):  # type: ignore[misc]
    """Shows steps, loss, images per second and remaining time."""

    def __init__(self) -> None:
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.console = progress_console()
        self.loss = ""
        self.step_times: list[float] = []
        self.start_time = self.last_line = 0.0
        self.bar = Progress(*columns, console=self.console)
        self.task = self.bar.add_task("", total=None)

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Start at the step of the checkpoint."""
        self.start_time = self.last_line = time.monotonic()
        self.step_times = [self.start_time]
        if state.is_world_process_zero and self.console.is_terminal:
            self.bar.reset(self.task, total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_log(self, _: Any, state: TrainerState, *__: Any, logs: Any = None, **___: Any) -> None:
        """Keep the last loss, and print the results of an evaluation."""
        logs = logs or {}
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.4f}"
        if "eval_loss" in logs and state.is_world_process_zero:
            logger.info(f"step {state.global_step}: {evaluation_summary(logs)}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Advance by one step."""
        self.step_times = [*self.step_times, time.monotonic()][-THROUGHPUT_WINDOW - 1 :]
        if not state.is_world_process_zero:
            return
        if self.console.is_terminal:
            self.bar.update(self.task, completed=state.global_step, description=self._description(args))
        elif self.step_times[-1] - self.last_line > self._line_interval():
            self.last_line = self.step_times[-1]
            remaining = (state.max_steps - state.global_step) * self._seconds_per_step()
            line = f"step {state.global_step}/{state.max_steps}: {self._description(args)}, {remaining:.0f} s left"
            logger.info(line)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if self.bar.live.is_started:
            self.bar.stop()

    def _line_interval(self) -> float:
        return line_interval(self.last_line - self.start_time, SECONDS_BETWEEN_LINES)

    def _seconds_per_step(self) -> float:
        return (self.step_times[-1] - self.step_times[0]) / max(len(self.step_times) - 1, 1)

    def _description(self, args: TrainingArguments) -> str:
        rate = f"{self.loss}  {images_per_step(args) / max(self._seconds_per_step(), 1e-9):.2f} images/s".strip()
        return f"{rate}, {gpu_memory()}" if gpu_memory() else rate


class Throughput(TrainerCallback):  # type: ignore[misc]
    """Measures steps per second since training started or resumed."""

    def __init__(self) -> None:
        self.start_time, self.start_step = time.monotonic(), 0

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Start to measure."""
        self.start_time, self.start_step = time.monotonic(), int(state.global_step)

    def steps_per_second(self, state: TrainerState) -> float:
        """Return the steps per second."""
        return (int(state.global_step) - self.start_step) / max(time.monotonic() - self.start_time, 1e-9)


def images_per_step(args: TrainingArguments) -> int:
    """Count the images of an optimizer step in all processes."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


@contextmanager
def count_progress(title: str, total: int, completed: int) -> Iterator[Callable[[int], None]]:
    """Show how many of a total are done; yield the function that adds to them."""
    console = progress_console()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = last_line = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total, completed=completed)

        def advance(number: int) -> None:
            nonlocal last_line
            bar.advance(task, number)
            if not console.is_terminal and (now := time.monotonic()) - last_line > line_interval(
                last_line - start, SECONDS_BETWEEN_LINES
            ):
                last_line = now
                row = bar.tasks[0]
                logger.info(f"{title}: {row.completed:,.0f} of {total:,}, {row.time_remaining or 0:.0f} s left")

        yield advance


def evaluation_summary(logs: Mapping[str, Any]) -> str:
    """Write the loss and the metrics of an evaluation as a line, without its times."""
    times = ("_runtime", "_per_second")
    values = {name: value for name, value in logs.items() if name.startswith("eval_") and not name.endswith(times)}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items())
