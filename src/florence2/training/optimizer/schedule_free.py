"""Optimizers that train at other weights than they keep: Schedule-Free and its kin average as they go.

Such an optimizer has `train()` and `eval()`, which move the weights there and back. transformers calls them around
steps and measuring, not around saving and showing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def to_eval_weights(optimizer: Any) -> None:
    """Put the weights where they are kept; the next step takes them back. Harmless for any other optimizer."""
    if hasattr(optimizer, "eval"):
        optimizer.eval()


@contextmanager
def eval_weights(optimizer: Any) -> Iterator[None]:
    """Put the weights where they are kept for a while, and give them back as they were, to the bit."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]] if _averages(optimizer) else []
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


def _averages(optimizer: Any) -> bool:
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's has these methods, whatever is in it
    return optimizer is not None and hasattr(inner, "eval")
