"""One stage of the pre-training: a resumable training loop with its optimizer, schedule and progress lines.

The loss of a step depends on nothing but the weights and the step's number, so a run that was interrupted and resumed
ends with the same weights as an uninterrupted one.
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

from florence2.files import atomic_write

SAVE_INTERVAL_S = 60
REPORT_EVERY = 50


@dataclass(frozen=True)
class Stage:
    """A module, its loss and the length of its training; `loss(step)` returns the loss and numbers for the log."""

    name: str
    module: nn.Module
    loss: Callable[[int], tuple[Tensor, dict[str, float]]]
    steps: int
    batch_size: int  # samples of one step in all processes, for the log
    learning_rates: dict[str, float]  # by prefix of the parameter's name; the longest prefix counts, others freeze
    warmup_steps: int = 200
    max_grad_norm: float = 1.0

    def run(self, folder: Path) -> None:
        """Train to the last step, from the checkpoint in `folder` if there is one."""
        file = folder / f"{self.name}.pt"
        optimizer, scheduler = self._create_optimizer()
        first_step = 0
        if file.exists():
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            first_step = checkpoint["step"]
            self.module.load_state_dict(checkpoint["module"])
            if first_step < self.steps:
                optimizer.load_state_dict(checkpoint["optimizer"])
                scheduler.load_state_dict(checkpoint["scheduler"])
        self.module.train()
        progress = _Progress(self.name, self.steps, self.batch_size, first_step)
        saved_at = time.monotonic()
        for step in range(first_step, self.steps):
            loss, numbers = self.loss(step)
            loss.backward()  # type: ignore[no-untyped-call]
            self._average_gradients()
            nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            progress.update(step, numbers)
            if _is_main_process() and (step + 1 == self.steps or time.monotonic() - saved_at > SAVE_INTERVAL_S):
                state = {"step": step + 1, "module": self.module.state_dict()}
                if step + 1 < self.steps:
                    state |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
                with atomic_write(file, "wb") as stream:
                    torch.save(state, stream)
                saved_at = time.monotonic()

    def _average_gradients(self) -> None:
        """Average the gradients over all processes, if there are several."""
        if not distributed.is_initialized():
            return
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for gradient, mean in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _create_optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        parameters: dict[str, list[Tensor]] = {prefix: [] for prefix in self.learning_rates}
        for name, parameter in self.module.named_parameters():
            prefix = max((prefix for prefix in parameters if name.startswith(prefix)), key=len, default=None)
            parameter.requires_grad_(prefix is not None)
            if prefix is not None:
                parameters[prefix].append(parameter)
        groups = [{"params": parameters[prefix], "lr": rate} for prefix, rate in self.learning_rates.items()]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)

    def _learning_rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate: linear warmup, then a cosine down to a fiftieth."""
        decay = 0.5 * (1 + math.cos(math.pi * min(1, step / self.steps)))
        return min(1, (step + 1) / self.warmup_steps) * (0.02 + 0.98 * decay)


class _Progress:
    """Prints the means of the last steps, samples per second and the remaining time."""

    def __init__(self, name: str, steps: int, batch_size: int, first_step: int) -> None:
        self.name, self.steps, self.batch_size, self.first_step = name, steps, batch_size, first_step
        self.start = time.monotonic()
        self.sums: Counter[str] = Counter()
        self.num_summed = 0

    def update(self, step: int, numbers: dict[str, float]) -> None:
        self.sums.update(numbers)
        self.num_summed += 1
        if (step + 1) % REPORT_EVERY and step + 1 < self.steps:
            return
        steps_per_s = (step + 1 - self.first_step) / (time.monotonic() - self.start)
        means = " ".join(f"{name} {total / self.num_summed:.3f}" for name, total in self.sums.items())
        minutes = (self.steps - step - 1) / steps_per_s / 60
        sys.stderr.write(
            f"{self.name} {step + 1}/{self.steps}, {steps_per_s * self.batch_size:.0f} samples/s, "
            f"{minutes:.0f} min left: {means}\n"
        )
        sys.stderr.flush()
        self.sums.clear()
        self.num_summed = 0


def _is_main_process() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0
