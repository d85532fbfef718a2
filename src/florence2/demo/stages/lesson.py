"""One stage of the build as a loop: rate, progress with time left, and a file to go on from.

A step's loss must depend on nothing but the weights and the step's number; then a build that was cut short and
resumed ends with the same weights. It knows nothing of what is learnt.
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

SAVE_EVERY_S = 60
REPORT_EVERY = 50


@dataclass(frozen=True)
class Lesson:
    """What a stage learns and for how long; `loss(step)` gives the loss and numbers worth showing."""

    name: str
    learner: nn.Module
    loss: Callable[[int], tuple[Tensor, dict[str, float]]]
    steps: int
    batch: int
    rates: dict[str, float]  # learning rate by beginning of a parameter's name, the longest counts
    warmup: int = 200
    clip: float = 1.0

    def run(self, folder: Path) -> None:
        """Learn until done, going on from `folder` where there is something; skip what is done."""
        file = folder / f"{self.name}.pt"
        optimizer, schedule = self._optimizer()
        first = 0
        if file.exists():
            saved = torch.load(file, map_location="cpu", weights_only=True)
            first = saved["step"]
            self.learner.load_state_dict(saved["learner"])
            if first < self.steps:
                optimizer.load_state_dict(saved["optimizer"])
                schedule.load_state_dict(saved["schedule"])
        self.learner.train()
        progress = _Progress(self.name, self.steps, self.batch, first)
        saved_at = time.monotonic()
        for step in range(first, self.steps):
            loss, numbers = self.loss(step)
            loss.backward()  # type: ignore[no-untyped-call]
            self._share_gradients()
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            progress.note(step, numbers)
            if _is_first() and (step + 1 == self.steps or time.monotonic() - saved_at > SAVE_EVERY_S):
                state = {"step": step + 1, "learner": self.learner.state_dict()}
                if step + 1 < self.steps:
                    state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                torch.save(state, file.with_suffix(".part"))
                file.with_suffix(".part").replace(file)
                saved_at = time.monotonic()

    def _share_gradients(self) -> None:
        """Average with fellow processes, if there are any."""
        if not distributed.is_initialized():
            return
        gradients = [parameter.grad for parameter in self.learner.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for gradient, piece in zip(gradients, torch.split(flat, [one.numel() for one in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def _optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        groups: dict[str, list[Tensor]] = {start: [] for start in self.rates}
        for name, parameter in self.learner.named_parameters():
            start = max((start for start in self.rates if name.startswith(start)), key=len, default=None)
            parameter.requires_grad_(start is not None)
            if start is not None:
                groups[start].append(parameter)
        rated = [{"params": groups[start], "lr": rate} for start, rate in self.rates.items()]
        optimizer = torch.optim.AdamW(rated, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, self._share)

    def _share(self, step: int) -> float:
        """Return the share of the full rate at a step: up over the warmup, down along a cosine to a fiftieth."""
        fall = 0.5 * (1 + math.cos(math.pi * min(1, step / self.steps)))
        return min(1, (step + 1) / self.warmup) * (0.02 + 0.98 * fall)


class _Progress:
    """Prints means of the last steps, samples a second and the time left."""

    def __init__(self, name: str, steps: int, batch: int, first: int) -> None:
        self.name, self.steps, self.batch, self.first = name, steps, batch, first
        self.begun = time.monotonic()
        self.sums: Counter[str] = Counter()

    def note(self, step: int, numbers: dict[str, float]) -> None:
        self.sums.update(numbers)
        if (step + 1) % REPORT_EVERY and step + 1 < self.steps:
            return
        counted = (step - self.first) % REPORT_EVERY + 1 if step - self.first < REPORT_EVERY else REPORT_EVERY
        pace = (step + 1 - self.first) / (time.monotonic() - self.begun)
        means = " ".join(f"{name} {total / counted:.3f}" for name, total in self.sums.items())
        left = (self.steps - step - 1) / pace / 60
        sys.stderr.write(
            f"{self.name} {step + 1}/{self.steps}, {pace * self.batch:.0f}/s, {left:.0f} min left: {means}\n"
        )
        sys.stderr.flush()
        self.sums.clear()


def _is_first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0
