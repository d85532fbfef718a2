"""Reuse of equal weights by several models in memory: several adapters merged into copies of one base."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def reuse_weights(model: Any, base: Any) -> int:
    """Let a model use the memory of another one for every tensor that is equal to the bit; return the bytes saved.

    Neither may be trained afterwards. A merged adapter differs from its base in the matrices that it was trained on.
    """
    theirs = dict(base.named_parameters()) | dict(base.named_buffers())
    counted: set[int] = set()
    saved = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        other = theirs.get(name)
        if other is None or other.data_ptr() == tensor.data_ptr() or not _is_equal(tensor, other):
            continue
        if tensor.data_ptr() not in counted:  # tied weights are one tensor under several names
            saved += tensor.numel() * tensor.element_size()
            counted.add(tensor.data_ptr())
        tensor.data = other.data
    return saved


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)
