"""Guard against gradients that are not finite: it skips their steps, and stops training after too many."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from florence2.training.saving.checkpoints import is_valid_checkpoint, list_checkpoints, steps_of

MAX_CONSECUTIVE_SKIPS = 20  # steps


class NonFiniteGradientGuard(TrainerCallback):  # type: ignore[misc]
    """Skips steps without a finite gradient, so that weights do not change. After too many in a row, training stops.

    The step before the first skipped one may have damaged the weights. Saving and evaluation are postponed to the next
    finite step, if there is one, so that no damaged checkpoint replaces an older one.
    """

    def __init__(self, limit: int = MAX_CONSECUTIVE_SKIPS) -> None:
        self.limit = limit
        self.skipped = 0
        self.consecutive = 0
        self.postponed: set[str] = set()

    @property
    def is_exceeded(self) -> bool:
        """Return whether too many steps in a row were skipped."""
        return self.consecutive >= self.limit

    def on_pre_optimizer_step(
        self,
        _: Any,
        __: Any,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer,
        **___: Any,
    ) -> TrainerControl:
        """Remove gradients that are not finite, so that the optimizer changes nothing."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        grads = [weight.grad for weight in weights if weight.grad is not None]
        if math.isfinite(torch.nn.utils.get_total_norm(grads).item()):
            self.consecutive = 0
            return control
        self.skipped += 1
        self.consecutive += 1
        for weight in weights:
            weight.grad = None
        control.should_training_stop |= self.is_exceeded
        return control

    def on_step_end(self, _: Any, state: TrainerState, control: TrainerControl, **__: Any) -> TrainerControl:
        """Postpone saving and evaluation after a skipped step, or catch up on them."""
        return self._postpone(state, control)

    def on_epoch_end(self, _: Any, state: TrainerState, control: TrainerControl, **__: Any) -> TrainerControl:
        """Postpone saving and evaluation after an epoch that ends with a skipped step."""
        return self._postpone(state, control)

    def last_finite_checkpoint(self, folder: Path, state: TrainerState) -> Path | None:
        """Return the newest valid checkpoint from before the step that may have damaged the weights."""
        last_finite_step = state.global_step - self.consecutive
        return next(
            (
                checkpoint
                for checkpoint in reversed(list_checkpoints(folder))
                if steps_of(checkpoint) < last_finite_step and is_valid_checkpoint(checkpoint)
            ),
            None,
        )

    def _postpone(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        for name in ("should_save", "should_evaluate"):
            if self.consecutive and (self.is_exceeded or state.global_step < state.max_steps):
                if getattr(control, name):
                    self.postponed.add(name)
                setattr(control, name, False)
            elif name in self.postponed:
                self.postponed.discard(name)
                setattr(control, name, True)
        return control
