import copy

import pytest
import torch
from torch import nn

from florence2.model.patches import replace_class, replace_forward, restore_class, restore_forward


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_replaced_forward_is_restored() -> None:
    layer, other, x = nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 2)
    expected = layer(x)
    replace_forward(layer, lambda x: x + 1)
    assert layer(x).tolist() == [[2, 2]]
    assert "forward" not in vars(other)
    for _ in range(2):
        restore_forward(layer)
        assert torch.equal(layer(x), expected)


def test_replaced_class_is_restored_and_copied() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    expected = layer(x)
    replace_class(layer, Doubled)
    assert torch.equal(copy.deepcopy(layer)(x), 2 * expected)
    restore_class(layer, Doubled)
    assert type(layer) is nn.Linear
    assert torch.equal(layer(x), expected)


def test_class_that_is_no_direct_subclass_raises() -> None:
    with pytest.raises(TypeError, match="Doubled is no direct subclass of Conv2d"):
        replace_class(nn.Conv2d(1, 1, 1), Doubled)
