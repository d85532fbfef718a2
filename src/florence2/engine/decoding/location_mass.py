"""The probability near a location token: neighboring bins share what the model knows about one coordinate.

A coordinate has no single right bin, so that even a perfect box has location tokens of a few percent each. The mass of
a location token is the sum of the probabilities of the bins near it, at two radii. A search computes it in each step,
for the token that it chooses; `outputs.py` makes the scores of objects of it.

Shapes: S slots, W rows of a slot, K candidates of a step, N location tokens, R radii, M neighbors at all radii.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RADII = (3, 10)
"""The bins on each side that count as near; at the edge of an image, the window of as many bins within it."""


class LocationMass:
    """Computes the masses of location tokens, and packs them with a token's log-probability into one integer.

    So the tables of a batch hold one value for each token. The masses of other tokens are meaningless.
    """

    def __init__(self, location_ids: range, device: torch.device | str = "cpu") -> None:
        """Take the ids of the location tokens, in the order of their bins."""
        self._first, self._count = location_ids.start, len(location_ids)
        windows = [[_window(bin_, radius, self._count) for radius in RADII] for bin_ in range(self._count)]
        indices = [[index for window in row for index in window] for row in windows]
        radius_of_index = [number for number, window in enumerate(windows[0]) for _ in window]
        self._windows_NM = torch.tensor(indices, device=device)
        self._indicator_MR = F.one_hot(torch.tensor(radius_of_index), len(RADII)).float().to(device)

    def location_logits(self, logits_SWV: Tensor) -> Tensor:
        """View the logits of the location tokens: (S, W, N)."""
        return logits_SWV.narrow(-1, self._first, self._count)

    def pack(self, logprobs_SWN: Tensor, parent_SK: Tensor, token_SK: Tensor, logprob_SK: Tensor) -> Tensor:
        """Pack the log-probability of each token with its masses, from those of the location tokens of its row."""
        bin_SK = (token_SK - self._first).clamp_(0, self._count - 1)
        index_SKM = F.embedding(bin_SK, self._windows_NM) + (parent_SK * self._count).unsqueeze(-1)
        near_SKM = logprobs_SWN.flatten(1).gather(1, index_SKM.flatten(1)).view(index_SKM.shape)
        mass_SKR = near_SKM.exp_() @ self._indicator_MR
        parts = (logprob_SK.unsqueeze(-1).view(torch.int16), mass_SKR.half().view(torch.int16))
        return torch.cat(parts, -1).view(torch.int64).squeeze(-1)


def unpack(likelihood: Tensor) -> tuple[list[Any], list[Any]]:
    """Return log-probabilities, and masses at each radius, as lists of the shape of the tensor."""
    parts = likelihood.contiguous().unsqueeze(-1).view(torch.int16)
    logprobs = parts[..., :2].contiguous().view(torch.float32).squeeze(-1)
    return logprobs.tolist(), parts[..., 2:].contiguous().view(torch.float16).float().tolist()


def _window(bin_: int, radius: int, count: int) -> Sequence[int]:
    """Return the bins near a bin, as many at the edges as elsewhere."""
    size = min(2 * radius + 1, count)
    first = min(max(bin_ - radius, 0), count - size)
    return range(first, first + size)
