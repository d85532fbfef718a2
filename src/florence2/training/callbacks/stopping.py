"""What ends a training, or a step of it: gradients that are not finite, no more gain, and being asked to stop.

Callbacks of transformers' trainer. Knows neither model nor settings.
"""

import math
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from florence2.errors import UserError
from florence2.log import logger
from florence2.training.saving.checkpoints import STATE, is_valid_checkpoint, list_checkpoints, steps_of

MAX_CONSECUTIVE_SKIPS = 20  # steps without a finite gradient, after which training stops


class TrainingInterrupted(UserError):  # noqa: N818  it is no error to have been asked
    """Training was asked to stop, and did, behind a checkpoint."""


class NonFiniteGradientGuard(TrainerCallback):  # type: ignore[misc]
    """Leave out steps whose gradients are not finite: weights stay as they were. After too many in a row, stop.

    The step before them may be what broke the weights. So what would be saved or measured meanwhile waits for the next
    whole step, if there is one, and pushes no checkpoint from before out of its place.
    """

    def __init__(self, limit: int = MAX_CONSECUTIVE_SKIPS) -> None:
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0
        self.postponed: set[str] = set()

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
        control.should_training_stop |= self.too_many
        return control

    def on_step_end(self, _: Any, state: TrainerState, control: TrainerControl, **__: Any) -> TrainerControl:
        """Postpone what a broken step would end with, or catch up on it."""
        return self._wait(state, control)

    def on_epoch_end(self, _: Any, state: TrainerState, control: TrainerControl, **__: Any) -> TrainerControl:
        """Postpone what an epoch would end with."""
        return self._wait(state, control)

    def last_finite_checkpoint(self, folder: Path, state: TrainerState) -> Path | None:
        """Find the newest checkpoint from before the step that may have broken the weights."""
        last_whole = state.global_step - self.in_a_row
        return next(
            (
                each
                for each in reversed(list_checkpoints(folder))
                if steps_of(each) < last_whole and is_valid_checkpoint(each)
            ),
            None,
        )

    def _wait(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        for name in ("should_save", "should_evaluate"):
            if self.in_a_row and (self.too_many or state.global_step < state.max_steps):
                if getattr(control, name):
                    self.postponed.add(name)
                setattr(control, name, False)
            elif name in self.postponed:
                self.postponed.discard(name)
                setattr(control, name, True)
        return control


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Stop after so many measurements in a row that were no better than the best before them.

    They are counted from the trainer's own log, so that a training that goes on from a checkpoint counts on.
    """

    def __init__(self, limit: int, score: str, rises: bool) -> None:
        self.limit = limit
        self.score = f"eval_{score}"
        self.rises = rises

    def evaluations_since_best(self, state: TrainerState) -> int:
        """Count the measurements behind the best one."""
        values = [row[self.score] * (1 if self.rises else -1) for row in state.log_history if self.score in row]
        return len(values) - 1 - values.index(max(values)) if values else 0

    def stopped_at(self, checkpoint: Path) -> bool:
        """Tell whether there was no gain for long enough when a checkpoint was written."""
        return self.evaluations_since_best(TrainerState.load_from_json(str(checkpoint / STATE))) >= self.limit

    def on_evaluate(self, _: Any, state: TrainerState, control: TrainerControl, **__: Any) -> TrainerControl:
        """Look whether there was a gain."""
        if self.evaluations_since_best(state) >= self.limit and state.global_step < state.max_steps:
            control.should_training_stop = True
            if state.is_world_process_zero:
                named, many = self.score.replace("_", " "), "measurement" if self.limit == 1 else "measurements"
                logger.info(f"stopped at step {state.global_step}: {self.limit} {many} without a better {named}")
        return control


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
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
