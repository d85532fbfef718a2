"""How far a run has come: rate and time left while it works, a summary when it ends; all on stderr.

In a terminal it is a bar; elsewhere, a line now and then. Knows no model.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from florence2.data.sample import Prediction
from florence2.log import logger, progress_console

LINE_EVERY = 30.0  # seconds, where there is no terminal


@dataclass
class RunSummary:
    """What a run has done so far."""

    total: int | None = None
    answered: int = 0
    resumed: int = 0
    tokens: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    slots: int = 0
    slots_in_use: int = 0

    @property
    def done(self) -> int:
        """Count the answers and errors of this run."""
        return self.answered + len(self.errors)

    @property
    def exit_code(self) -> int:
        """Return 0 where all was answered and 1 where something was not."""
        return 1 if self.errors else 0

    def summary(self) -> str:
        """Say in a few lines what was done and what was not."""
        rate = self.answered / self.seconds if self.seconds else 0.0
        per_token = self.tokens / self.seconds if self.seconds else 0.0
        lines = [f"answered {self.answered} in {self.seconds:.1f} s ({rate:.2f} answers/s, {per_token:.1f} tokens/s)"]
        if self.resumed:
            lines.append(f"{self.resumed} were answered before; pass `--overwrite_output` to predict them again")
        if self.errors:
            lines.append(f"{len(self.errors)} failed, the first is {self.errors[0][0]}: {self.errors[0][1]}")
        return "\n".join(lines)


class PredictProgressBar:
    """Shows a tally as it grows; a context manager that prints the summary at its end."""

    def __init__(self, tally: RunSummary) -> None:
        self.tally = tally
        self._console = progress_console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._start = self._spoke = time.monotonic()
        self._bar.start()
        self._row = self._bar.add_task("answers", total=self.tally.total, pace="")
        return self

    def __exit__(self, *_: object) -> None:
        self.tally.seconds = time.monotonic() - self._start
        self._bar.stop()

    def count(self, prediction: Prediction) -> None:
        """Add one prediction."""
        if prediction.error is None:
            self.tally.answered += 1
            self.tally.tokens += prediction.num_tokens
        else:
            self.tally.errors.append((prediction.file_name, prediction.error))
        now = time.monotonic()
        pace = self._pace(max(now - self._start, 1e-9))
        done = self.tally.done + self.tally.resumed
        self._bar.update(self._row, completed=done, pace=pace)
        if self._bar.disable and now - self._spoke > LINE_EVERY:
            self._spoke = now
            of = f" of {self.tally.total}" if self.tally.total is not None else ""
            logger.info(f"{done}{of} answers, {pace}{self._left(now - self._start)}")

    def _pace(self, seconds: float) -> str:
        """Word how fast it goes, and how many slots are busy with it."""
        slots = f", {self.tally.slots_in_use} of {self.tally.slots} slots" if self.tally.slots else ""
        return f"{self.tally.done / seconds:.2f}/s, {self.tally.tokens / seconds:.1f} tokens/s{slots}"

    def _left(self, seconds: float) -> str:
        """Word how long it will take from here, where that is known."""
        if self.tally.total is None or not self.tally.done:
            return ""
        left = (self.tally.total - self.tally.resumed - self.tally.done) * seconds / self.tally.done
        return f", {timedelta(seconds=round(max(left, 0)))} left"


def time_breakdown(seconds: Mapping[str, Any]) -> str:
    """Word where the time went: `vision 61%, decode 30%, ...`."""
    total = sum(seconds.values()) or 1.0
    ranked = sorted(seconds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {100 * part / total:.0f}%" for name, part in ranked)
