"""Patches of the attention modules of a vision tower, which engines of one model share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from florence2.model.patches import replace_forward, restore_forward


class AttentionPatch:
    """A forward method for one attention module, which computes the same in another order of operations."""

    # By name, because importing transformers' classes takes seconds, and `model/inference/` has its own.
    class_suffix: ClassVar[str]

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        self._plain = type(attention).forward.__get__(attention)
        self.num_users = 0  # engines that run the patched tower

    def __call__(self, hidden: Tensor) -> Tensor:
        """Compute attention."""
        raise NotImplementedError


def use_patch(tower: Any, patch: type[AttentionPatch]) -> None:
    """Patch the attention modules of one kind, or count one more user of the patch."""
    for module in _attentions(tower, patch):
        if not isinstance(module.forward, patch):
            replace_forward(module, patch(module))
        module.forward.num_users += 1


def restore_attention(tower: Any, patch: type[AttentionPatch]) -> None:
    """Count one user of a patch less; without users the modules run their own forward method again."""
    for module in _attentions(tower, patch):
        module.forward.num_users -= 1
        if not module.forward.num_users:
            restore_forward(module)


def _attentions(tower: Any, patch: type[AttentionPatch]) -> Iterator[Any]:
    return (module for module in tower.modules() if type(module).__name__.endswith(patch.class_suffix))
