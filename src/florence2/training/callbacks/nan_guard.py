"""Guard against gradients whose norm is not finite: it skips their steps, and stops training after too many."""

from collections import deque
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from florence2.training.saving.checkpoints import is_valid_checkpoint, list_checkpoints, steps_of

MAX_CONSECUTIVE_SKIPS = 20  # steps
LAG = 1  # steps; the host reads a GPU's norm when the GPU has the next step queued, so neither waits


class NonFiniteGradientGuard(TrainerCallback):  # type: ignore[misc]
    """Skips steps without a finite gradient norm, so that weights do not change, and stops training after too many.

    The trainer hands over the norm that it clips by. Fused optimizers skip a step on the GPU, and the host reads the
    norm `LAG` steps later, or earlier if it saves or evaluates. Other optimizers need the norm before the step.

    The step before the first skipped one may have damaged the weights. Saving and evaluation are postponed to the next
    finite step, if there is one, so that no damaged checkpoint replaces an older one.
    """

    def __init__(self, limit: int = MAX_CONSECUTIVE_SKIPS) -> None:
        self.limit = limit
        self.skipped = 0
        self.consecutive = 0
        self.postponed: set[str] = set()
        self._norm: torch.Tensor | None = None
        self._unread: deque[_HostCopy] = deque()

    @property
    def is_exceeded(self) -> bool:
        """Return whether too many steps in a row were skipped."""
        return self.consecutive >= self.limit

    def set_norm(self, norm: torch.Tensor | None) -> None:
        """Take the gradient norm of the step that comes next."""
        self._norm = norm

    def on_pre_optimizer_step(
        self,
        _: Any,
        __: Any,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer,
        **___: Any,
    ) -> TrainerControl:
        """Let the optimizer skip the step if the gradient norm is not finite."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm, self._norm = self._norm, None
        if norm is None:
            norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        is_skipped = ~norm.isfinite()
        if is_skipped.device.type == "cuda" and skips_on_device(optimizer):
            skip_on_device(optimizer, is_skipped)
            self._unread.append(_HostCopy(is_skipped))
            return control
        if self._count(bool(is_skipped.item())):
            for weight in weights:
                weight.grad = None
        control.should_training_stop |= self.is_exceeded
        return control

    def on_step_end(self, _: Any, state: TrainerState, control: TrainerControl, **__: Any) -> TrainerControl:
        """Postpone saving and evaluation after a skipped step, or catch up on them."""
        self._read(LAG)
        return self._postpone(state, control)

    def on_epoch_end(self, _: Any, state: TrainerState, control: TrainerControl, **__: Any) -> TrainerControl:
        """Postpone saving and evaluation after an epoch that ends with a skipped step."""
        return self._postpone(state, control)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Count the last steps."""
        self._read(0)

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

    def _count(self, is_skipped: bool) -> bool:
        self.skipped += is_skipped
        self.consecutive = self.consecutive + 1 if is_skipped else 0
        return is_skipped

    def _read(self, lag: int) -> None:
        """Count the steps on a GPU up to the last `lag` ones."""
        while len(self._unread) > lag:
            self._count(self._unread.popleft().read())

    def _postpone(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        if control.should_save or control.should_evaluate or self.postponed or self.is_exceeded:
            self._read(0)
        for name in ("should_save", "should_evaluate"):
            if self.consecutive and (self.is_exceeded or state.global_step < state.max_steps):
                if getattr(control, name):
                    self.postponed.add(name)
                setattr(control, name, False)
            elif name in self.postponed:
                self.postponed.discard(name)
                setattr(control, name, True)
        control.should_training_stop |= self.is_exceeded
        return control


class _HostCopy:
    """A boolean of a GPU on its way to the host."""

    def __init__(self, value: torch.Tensor) -> None:
        self._value = torch.empty_like(value, device="cpu", pin_memory=True)
        self._value.copy_(value, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def read(self) -> bool:
        """Return the value; wait until it has arrived."""
        self._event.synchronize()
        return bool(self._value.item())


def skips_on_device(optimizer: Any) -> bool:
    """Return whether `skip_on_device` works: for torch's fused optimizers on weights that are not sharded."""
    inner = getattr(optimizer, "optimizer", optimizer)  # in accelerate's wrapper
    weights = [weight for group in inner.param_groups for weight in group["params"]]
    return (
        type(inner).__module__.startswith("torch.optim.")
        and getattr(inner, "_step_supports_amp_scaling", False)
        and not any(hasattr(weight, "full_tensor") for weight in weights)
    )


def skip_on_device(optimizer: Any, is_skipped: torch.Tensor) -> None:
    """Let the next step of a fused optimizer change nothing if a boolean on its device is true.

    A gradient scaler of float16 overwrites this with its own finding of non-finite gradients.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    inner.found_inf = is_skipped.float()
