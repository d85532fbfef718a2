"""The callbacks of a training run, and how it ended."""

from pathlib import Path
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from florence2.errors import UserError
from florence2.log import logger
from florence2.training.callbacks.early_stopping import EarlyStopping
from florence2.training.callbacks.nan_guard import NonFiniteGradientGuard
from florence2.training.callbacks.signals import StopOnSignal, TrainingInterrupted
from florence2.training.callbacks.training_progress import TrainingProgressBar
from florence2.training.curves.metrics_logger import MetricsLogger
from florence2.training.curves.training_page import TrainingPage


class SaveEveryNEpochs(TrainerCallback):  # type: ignore[misc]
    """Saves every so many epochs, beside or instead of transformers' strategy; the last epoch is always saved."""

    def __init__(self, epochs: int | None) -> None:
        self.epochs = epochs

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Skip saving and evaluation after epochs in between."""
        if self.epochs is None:
            return control
        is_due = round(state.epoch or 0) % self.epochs == 0
        if args.save_strategy == "epoch":
            control.should_save &= is_due or state.global_step >= state.max_steps
            control.should_evaluate &= control.should_save
        elif is_due:
            control.should_save = True
        return control


class TrainingCallbacks:
    """Callbacks of one run; a context manager that handles signals and removes the progress bar at its end."""

    def __init__(self, folder: Path, save_epochs: int | None, patience: int | None) -> None:
        self.folder = folder
        self.gradient_guard = NonFiniteGradientGuard()
        self.stop_on_signal = StopOnSignal()
        self.progress_bar = TrainingProgressBar()
        self.early_stopping = None if patience is None else EarlyStopping(patience)
        self.callbacks: list[TrainerCallback] = [
            SaveEveryNEpochs(save_epochs),
            self.gradient_guard,
            self.stop_on_signal,
            self.progress_bar,
            MetricsLogger(folder),
            TrainingPage(folder),
            *([] if self.early_stopping is None else [self.early_stopping]),
        ]

    def __enter__(self) -> Self:
        self.stop_on_signal.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop_on_signal.__exit__(*error)
        self.progress_bar.close()

    def early_stopped_at(self, checkpoint: Path, args: TrainingArguments) -> bool:
        """Return whether the run had stopped early when it wrote a checkpoint."""
        return self.early_stopping is not None and self.early_stopping.stopped_at(checkpoint, args)

    def scores(self) -> dict[str, Any]:
        """Return how many steps were skipped."""
        return {"skipped_steps": self.gradient_guard.skipped}

    def raise_if_stopped(self, state: TrainerState, resume_command: str) -> None:
        """Raise UserError if the run ended before its last step; warn if its last steps were skipped."""
        consecutive = self.gradient_guard.consecutive
        if self.gradient_guard.is_exceeded:
            checkpoint = self.gradient_guard.last_finite_checkpoint(self.folder, state)
            restart = f"; `--model_id {checkpoint}` starts from the last finite checkpoint" if checkpoint else ""
            raise UserError(
                f"steps {state.global_step - consecutive + 1} to {state.global_step} had no finite gradient",
                f"lower `--learning_rate` or pass `--dtype float32`, with another `--output_dir`{restart}",
            )
        if self.stop_on_signal.is_requested and state.global_step < state.max_steps:
            raise TrainingInterrupted(
                f"stopped at step {state.global_step} of {state.max_steps}", f"resume with: {resume_command}"
            )
        if consecutive and state.is_world_process_zero:
            steps = "step" if consecutive == 1 else f"{consecutive} steps"
            logger.warning(f"the last {steps} had no finite gradient: evaluate the model before you use it")
