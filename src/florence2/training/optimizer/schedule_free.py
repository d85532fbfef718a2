"""Switch of Schedule-Free optimizers between training weights and evaluation weights.

Such an optimizer averages weights. Its `train()` and `eval()` move the model's weights between both. transformers
calls them around steps and evaluation, but neither before a checkpoint is saved nor around other inference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def to_eval_weights(optimizer: Any) -> None:
    """Move the weights to their averages until the next step; other optimizers ignore it."""
    if hasattr(optimizer, "eval"):
        optimizer.eval()


@contextmanager
def eval_weights(optimizer: Any) -> Iterator[None]:
    """Move the weights to their averages inside the context, and restore them exactly."""
    weights = (
        [weight for group in optimizer.param_groups for weight in group["params"]]
        if _is_schedule_free(optimizer)
        else []
    )
    before = [weight.detach().clone() for weight in weights]
    to_eval_weights(optimizer)
    moved = any(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    try:
        yield
    finally:
        if moved:
            optimizer.train()
            with torch.no_grad():
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(old)


def _is_schedule_free(optimizer: Any) -> bool:
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper always has these methods
    return optimizer is not None and hasattr(inner, "eval")
