"""Progress of a prediction run: rate and time left while it works, a summary at its end.

A terminal shows a bar; elsewhere a line is logged every `LINE_INTERVAL` seconds, later every minute. Until the first
prediction both name what the run does: loading, or waiting for the first images. The rate is that of about the last
minute, and so is the time left, which is shown once enough predictions are done.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from florence2.data.sample import Prediction
from florence2.errors import to_line
from florence2.log import count_noun, line_interval, logger, progress_console

LINE_INTERVAL = 10.0  # seconds, in the first minute
# The time left is unknown before this many predictions and seconds: the first ones finish in a burst.
MIN_PREDICTIONS_FOR_TIME_LEFT = 20
MIN_SECONDS_FOR_TIME_LEFT = 5.0
WINDOW_SECONDS = 60.0  # the rate of the time left is that of about the last minute
WINDOW_INTERVAL = 0.5


@dataclass(frozen=True)
class RunSummary:
    """The result of a prediction run: numbers of predictions, and (file name, error) of each image that failed.

    `ignored_files` is a line about files that were not read as images. Of `num_shards` shards, `num_shards_done` were
    done by this run and `num_shards_earlier` before; `failed_shards` are names with errors, and so are
    `failed_folders`, which cannot be listed. `num_removed` counts the objects that `--min_score` removed.
    """

    num_predictions: int = 0
    num_resumed: int = 0
    num_tokens: int = 0
    errors: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    ignored_files: str = ""
    num_shards: int = 0
    num_shards_done: int = 0
    num_shards_earlier: int = 0
    failed_shards: tuple[tuple[str, str], ...] = ()
    failed_folders: tuple[tuple[str, str], ...] = ()
    num_removed: int = 0

    @property
    def exit_code(self) -> int:
        """Return 0 if there is no error, else 1."""
        return 1 if self.errors or self.failed_shards or self.failed_folders else 0

    def to_json(self) -> dict[str, Any]:
        """Return the numbers and all errors as a JSON object."""
        return {
            "predictions": self.num_predictions,
            "resumed": self.num_resumed,
            "tokens": self.num_tokens,
            "seconds": round(self.seconds, 3),
            "errors": [{"file_name": name, "error": error} for name, error in self.errors],
            "ignored_files": self.ignored_files,
            "shards": self.num_shards,
            "failed_shards": dict(self.failed_shards),
            "failed_folders": dict(self.failed_folders),
            "removed_objects": self.num_removed,
        }

    def lines(self) -> list[str]:
        """Return what a person reads."""
        rate = self.num_predictions / self.seconds if self.seconds else 0.0
        token_rate = self.num_tokens / self.seconds if self.seconds else 0.0
        predictions = count_noun(self.num_predictions, "prediction")
        lines = [f"{predictions} in {self.seconds:.1f} s ({rate:.2f}/s, {token_rate:.1f} tokens/s)"]
        if self.num_resumed:
            lines.append(
                f"{count_noun(self.num_resumed, 'prediction')} of an earlier run; pass `--overwrite_output` to replace"
            )
        if self.num_removed:
            lines.append(f"{count_noun(self.num_removed, 'object')} removed, with a score below `--min_score`")
        if self.errors:
            name, error = self.errors[0]
            lines.append(f"{len(self.errors)} failed; the first: {name}: {error}")
        if self.num_shards:
            shards = count_noun(self.num_shards, "shard")
            lines.append(f"{shards}: {self.num_shards_done} done, {self.num_shards_earlier} done before")
        if self.failed_shards:
            name, error = self.failed_shards[0]
            lines.append(f"{count_noun(len(self.failed_shards), 'shard')} failed; the first: {name}: {error}")
        if self.failed_folders:
            number = count_noun(len(self.failed_folders), "subfolder")
            lines.append(f"{number} cannot be read, run it again; the first: {self.failed_folders[0][1]}")
        if self.ignored_files:
            lines.append(self.ignored_files)
        return lines

    def __str__(self) -> str:
        return "\n".join(map(to_line, self.lines()))


class PredictProgressBar:
    """Counts predictions and shows the progress: rate, failed images, memory of the GPU; a context manager.

    `total` is the number of predictions to come, those of an earlier run (`num_resumed`) included; None if unknown.
    """

    def __init__(self, total: int | None = None, num_resumed: int = 0) -> None:
        self._total, self._num_resumed = total, num_resumed
        self._num_predictions = self._num_tokens = self._num_removed = 0
        self._errors: list[tuple[str, str]] = []
        self._start = self._last_line = time.monotonic()
        # Times, predictions and tokens so far: the rate may change, as when the model is compiled meanwhile.
        self._window: deque[tuple[float, int, int]] = deque()
        self._stage = "loading the model"
        self._has_started = threading.Event()  # or closed
        console = progress_console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar.start()
        self._bar_task = self._bar.add_task(self._stage, total=total, rate="", left="")
        threading.Thread(target=self._log_stage, name="progress", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        self._has_started.set()
        self._bar.stop()

    def show_stage(self, stage: str) -> None:
        """Name what the run does until its first prediction."""
        self._stage = stage
        self._bar.update(self._bar_task, description=stage)

    def _log_stage(self) -> None:
        """Log what the run does every `LINE_INTERVAL` seconds until the first prediction; a terminal has the bar."""
        seconds = 0.0
        while self._bar.disable and not self._has_started.wait(max(line_interval(seconds, LINE_INTERVAL), 0.01)):
            seconds = time.monotonic() - self._start
            logger.info(f"{self._stage}: {seconds:.0f} s so far")

    def update(
        self, prediction: Prediction, slots_in_use: int = 0, slots: int = 0, *, is_compiling: bool = False
    ) -> None:
        """Count one prediction; the slots are those of the engine, if it has any, which may be compiling meanwhile."""
        if prediction.error is None:
            self._num_predictions += 1
            self._num_tokens += prediction.num_tokens
            self._num_removed += prediction.num_removed
        else:
            self._errors.append((prediction.file_name, prediction.error))
        now = time.monotonic()
        self._has_started.set()
        self._add_to_window(now)
        rate = self._rate(now) + (f", {slots_in_use} of {slots} slots" if slots else "")
        rate += ", compiling in the background" if is_compiling else ""
        completed, left = self._completed + self._num_resumed, self._time_left(now)
        self._bar.update(self._bar_task, description="predictions", completed=completed, rate=rate, left=left)
        if self._bar.disable and now - self._last_line > line_interval(now - self._start, LINE_INTERVAL):
            self._last_line = now
            counted = count_noun(completed, "prediction")
            if self._total is not None:
                counted = f"{completed:,} of {count_noun(self._total, 'prediction')}"
            logger.info(f"{counted}, {rate}" + (f", {left}" if left else ""))

    def summary(self) -> RunSummary:
        """Return the counts so far."""
        seconds = time.monotonic() - self._start
        return RunSummary(
            self._num_predictions,
            self._num_resumed,
            self._num_tokens,
            tuple(self._errors),
            seconds,
            num_removed=self._num_removed,
        )

    @property
    def _completed(self) -> int:
        return self._num_predictions + len(self._errors)

    def _rate(self, now: float) -> str:
        start, completed, tokens = self._window[0] if self._has_rate(now) else (self._start, 0, 0)
        seconds = max(now - start, 1e-9)
        rate = f"{(self._completed - completed) / seconds:.2f}/s, {(self._num_tokens - tokens) / seconds:.1f} tokens/s"
        failed = [f"{len(self._errors):,} failed"] if self._errors else []
        return ", ".join([rate, *failed, *filter(None, [_gpu_memory()])])

    def _add_to_window(self, now: float) -> None:
        """Add a time to the window, and remove what is old, as long as enough predictions are left."""
        window = self._window
        if not window or now - window[-1][0] >= WINDOW_INTERVAL:
            window.append((now, self._completed, self._num_tokens))
        while (
            len(window) > 1
            and now - window[1][0] >= WINDOW_SECONDS
            and self._completed - window[1][1] >= MIN_PREDICTIONS_FOR_TIME_LEFT
        ):
            window.popleft()

    def _has_rate(self, now: float) -> bool:
        """Return whether the window says something about the next predictions."""
        has_many = self._completed >= MIN_PREDICTIONS_FOR_TIME_LEFT
        return has_many and now - self._window[0][0] >= MIN_SECONDS_FOR_TIME_LEFT

    def _time_left(self, now: float) -> str:
        """Estimate the time left by the rate of the last predictions; empty while that says little."""
        if self._total is None or not self._has_rate(now):
            return ""
        start, completed, _ = self._window[0]
        seconds_each = (now - start) / max(self._completed - completed, 1)
        left = (self._total - self._num_resumed - self._completed) * seconds_each
        return f"{timedelta(seconds=round(max(left, 0)))} left"


def _gpu_memory() -> str:
    """Return the memory on the GPU; a process that runs no engine imports no torch for it."""
    devices: Any = sys.modules.get("florence2.devices")
    return str(devices.gpu_memory()) if devices else ""


def time_breakdown(seconds: Mapping[str, Any]) -> str:
    """Format the fraction of time of each stage: `vision 61%, decode 30%, ...`."""
    total = sum(seconds.values()) or 1.0
    ranked = sorted(seconds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {100 * part / total:.0f}%" for name, part in ranked)
