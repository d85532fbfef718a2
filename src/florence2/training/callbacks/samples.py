"""What the model says about the same few pictures, again and again as it learns: words, drawings, and trackers told.

A callback of transformers' trainer. Knows neither model nor settings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback, TrainerState

from florence2.training.callbacks.loss_plot import MetricsFile

ROWS = "samples.jsonl"
DRAWN = "samples"


class SampleOutput(NamedTuple):
    """An answer, and the file of the picture with the answer drawn on it, if there is one."""

    file_name: str
    text: str
    drawing: Path | None


class SampleCallback(TrainerCallback):  # type: ignore[misc]
    """Write what the model says every so many epochs or steps, and tell the trackers.

    `say` draws into the folder it is given; `tell` hears the step and what was said.
    """

    def __init__(
        self,
        say: Callable[[Path], list[SampleOutput]],
        tell: Callable[[int, list[SampleOutput]], None],
        folder: Path,
        epochs: int | None,
        steps: int | None,
    ) -> None:
        self.say = say
        self.tell = tell
        self.folder = folder
        self.rows = MetricsFile(folder / ROWS)
        self.epochs = epochs
        self.steps = steps

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Forget what was said behind the step that is resumed."""
        if state.is_world_process_zero:
            self.rows.cut(state.global_step)

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
            said = self.say(self.folder / DRAWN / f"step-{state.global_step:06}")
        for each in said:
            self.rows.add({"step": state.global_step, "file_name": each.file_name, "text": each.text})
        self.tell(state.global_step, said)
