"""Predictions for the same few images during training: rows of `samples.jsonl`, annotated images, trackers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback, TrainerState

from florence2.training.arguments import Interval
from florence2.training.curves.metrics_logger import MetricsFile

SAMPLES_FILE = "samples.jsonl"
IMAGES_FOLDER = "samples"


class SampleOutput(NamedTuple):
    """A predicted text, and the path of the annotated image, if there is one."""

    file_name: str
    text: str
    annotated_image: Path | None


class SampleCallback(TrainerCallback):  # type: ignore[misc]
    """Predicts at an interval, writes the texts to a file and logs them to trackers.

    `predict` writes annotated images into a folder; `log` takes the step and its outputs.
    """

    def __init__(
        self,
        predict: Callable[[Path], list[SampleOutput]],
        log: Callable[[int, list[SampleOutput]], None],
        folder: Path,
        interval: Interval,
    ) -> None:
        self.predict = predict
        self.log = log
        self.folder = folder
        self.rows = MetricsFile(folder / SAMPLES_FILE)
        self.interval = interval

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Remove the rows after the step of the checkpoint."""
        if state.is_world_process_zero:
            self.rows.truncate(state.global_step)

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Predict after every so many steps."""
        if self.interval.steps and state.global_step % self.interval.steps == 0:
            self._predict(state)

    def on_epoch_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Predict after every so many epochs."""
        if self.interval.epochs and round(state.epoch or 0) % self.interval.epochs == 0:
            self._predict(state)

    def _predict(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        with torch.random.fork_rng():
            outputs = self.predict(self.folder / IMAGES_FOLDER / f"step-{state.global_step:06}")
        for output in outputs:
            self.rows.add({"step": state.global_step, "file_name": output.file_name, "text": output.text})
        self.log(state.global_step, outputs)
