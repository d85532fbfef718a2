"""Everything around one training in one hand: the rhythm of saving, what is shown, what ends it.

Knows neither model nor settings.
"""

from pathlib import Path
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from florence2.errors import UserError
from florence2.log import logger
from florence2.training.callbacks.reporting import MetricsLogger, TrainingProgressBar
from florence2.training.callbacks.stopping import (
    EarlyStopping,
    NonFiniteGradientGuard,
    StopOnSignal,
    TrainingInterrupted,
)


class SaveEveryNEpochs(TrainerCallback):  # type: ignore[misc]
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


class TrainingCallbacks:
    """All of it around one training; a context manager, because signals and the bar must be given back."""

    def __init__(self, folder: Path, epochs: int | None, patience: int | None) -> None:
        self.folder = folder
        self.limit = patience
        self.patience: EarlyStopping | None = None
        self.broken = NonFiniteGradientGuard()
        self.stop = StopOnSignal()
        self.rhythm = SaveEveryNEpochs(epochs)
        self.bar: TrainingProgressBar | None = None

    def __enter__(self) -> Self:
        self.stop.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop.__exit__(*problem)
        if self.bar is not None:
            self.bar.close()

    def callbacks(self, per_step: int, best_by: str, rises: bool) -> list[TrainerCallback]:
        """Give the callbacks for a training whose steps take so many pictures, the best of it told by a score."""
        self.bar = TrainingProgressBar(per_step)
        found = [self.rhythm, self.broken, self.stop, self.bar, MetricsLogger(self.folder)]
        if self.limit is not None:
            self.patience = EarlyStopping(self.limit, best_by, rises)
            found.append(self.patience)
        return found

    def early_stopped_at(self, checkpoint: Path) -> bool:
        """Tell whether a training had lost its patience at a checkpoint."""
        return self.patience is not None and self.patience.stopped_at(checkpoint)

    def scores(self) -> dict[str, Any]:
        """Say what went wrong on the way."""
        return {"skipped_steps": self.broken.skipped}

    def raise_if_stopped(self, state: TrainerState, command: str) -> None:
        """Raise where training ended before its time, if it did; `command` goes on from there. Warn of a broken end."""
        broken = self.broken.in_a_row
        if self.broken.too_many:
            good = self.broken.last_finite_checkpoint(self.folder, state)
            further = f"; `--model_id {good}` goes on from the last good state" if good else ""
            raise UserError(
                f"steps {state.global_step - broken + 1} to {state.global_step} had no finite gradient",
                f"lower `--learning_rate` or pass `--dtype float32`, with another `--output_dir`{further}",
            )
        if self.stop.asked and state.global_step < state.max_steps:
            raise TrainingInterrupted(
                f"stopped at step {state.global_step} of {state.max_steps}", f"go on with: {command}"
            )
        if broken and state.is_world_process_zero:
            some = "step" if broken == 1 else f"{broken} steps"
            logger.warning(f"the last {some} had no finite gradient: see what it answers before you rely on it")
