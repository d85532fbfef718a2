"""First stage: the vision tower alone, told what is seen in each of its 8 x 8 cells.

From captions alone a tower this small does not learn to name anything in hours; told cell by cell, it does in minutes.
Linear heads read name, word, order, size, place, ground, letter and box from the projected features, so that these
are what the language model finds there later. The heads are thrown away. This file knows nothing of tokens.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.demo.scenes import GROUNDS, PLACES, SIZES, WORDS, Box, Scene
from florence2.demo.sheet import all_emoji

GRID = 8
NOT_HERE = -100  # cross entropy passes over it
KNOTS = 33  # a side of a box is read as a mixture of the two nearest of so many positions

_GROUNDS, _SIZES, _PLACES = list(GROUNDS), list(SIZES), [place for row in PLACES for place in row]
_NUM_NAMES = len(all_emoji()) + 2
# One row per head: name, number of classes. Column 0 of the truth belongs to the first head, and so on.
HEADS = (
    ("name", _NUM_NAMES),
    ("word", len(WORDS)),
    ("order", 4),
    ("size", len(_SIZES)),
    ("place", len(_PLACES)),
    ("ground", len(_GROUNDS)),
    ("letter", 26),
)


@dataclass(frozen=True)
class CellTruth:
    """What is in each cell of a scene; `kinds` holds one column per head, `boxes` shares of the picture."""

    kinds: npt.NDArray[np.int64]  # [cells, heads]
    boxes: npt.NDArray[np.float32]  # [cells, 4]; minus one where there is none
    count: int


def cell_truth(made: Scene) -> CellTruth:
    """Say what is in each cell: the thing or word whose box holds the cell's centre, or the ground."""
    kinds = np.full((GRID, GRID, len(HEADS)), NOT_HERE, np.int64)
    boxes = np.full((GRID, GRID, 4), -1, np.float32)
    kinds[..., 0], kinds[..., 5] = 0, _GROUNDS.index(made.background)
    names = [emoji.name for emoji in all_emoji()]
    for order, thing in enumerate(made.objects):
        row = (1 + names.index(thing.name), NOT_HERE, order, _SIZES.index(thing.size), _PLACES.index(thing.place))
        _mark(made, thing.box, row, kinds, boxes)
    if made.sign:
        row = (_NUM_NAMES - 1, WORDS.index(made.sign.word), NOT_HERE, NOT_HERE, _PLACES.index(made.sign.place))
        across, down = _mark(made, made.sign.box, row, kinds, boxes)
        left, _, right, _ = made.sign.box
        for column in range(across.start, across.stop):
            share = ((column + 0.5) / GRID * made.size[0] - left) / (right - left)
            letter = made.sign.word[min(len(made.sign.word) - 1, max(0, int(share * len(made.sign.word))))]
            kinds[down, column, 6] = ord(letter) - ord("A")
    return CellTruth(kinds.reshape(-1, len(HEADS)), boxes.reshape(-1, 4), len(made.objects) - 1)


def _mark(
    made: Scene, box: Box, row: tuple[int, ...], kinds: npt.NDArray[np.int64], boxes: npt.NDArray[np.float32]
) -> tuple[slice, slice]:
    """Fill the cells of a box; return their columns and rows."""
    shares = [side / made.size[i % 2] for i, side in enumerate(box)]
    spans = []
    for low, high in ((shares[0], shares[2]), (shares[1], shares[3])):
        first, last = round(low * GRID), round(high * GRID)
        middle = int((low + high) / 2 * GRID)
        spans.append(slice(first, last) if first <= middle < last else slice(middle, middle + 1))
    kinds[spans[1], spans[0], :5] = row
    boxes[spans[1], spans[0]] = shares
    return spans[0], spans[1]


class CellHeads(nn.Module):
    """Linear readers of the projected features; the pooled one tells ground and number of things."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds = nn.Linear(width, sum(size for _, size in HEADS))
        self.sides = nn.Linear(width, 4 * KNOTS)
        self.reach = nn.Linear(width, 4 * KNOTS)
        self.whole = nn.Linear(width, len(_GROUNDS) + 4)

    def losses(self, features_BTD: Tensor, kinds_BCH: Tensor, boxes_BC4: Tensor, counts_B: Tensor) -> dict[str, Tensor]:
        """Return the cross entropy of each head, and under "accuracy" the share of things' cells named right."""
        cells, whole = features_BTD[:, 1:], self.whole(features_BTD[:, 0]).float()
        losses = {}
        parts = self.kinds(cells).float().split([size for _, size in HEADS], dim=-1)
        for column, ((name, _), logits) in enumerate(zip(HEADS, parts, strict=True)):
            here = kinds_BCH[..., column] != NOT_HERE
            total = F.cross_entropy(logits[here], kinds_BCH[..., column][here], reduction="sum")
            losses[name] = total / here.sum().clamp(min=1)
        something = boxes_BC4[..., 0] >= 0
        # What things are called is learnt last; most cells are ground, and would hide it in a plain mean.
        losses["called"] = F.cross_entropy(parts[0][something], kinds_BCH[..., 0][something])
        boxes_N4 = boxes_BC4[something]
        losses["sides"] = _distance(self.sides(cells[something]), boxes_N4)
        # How far a box reaches from its cell is easier to see than where in the picture it ends, and helps with that.
        cell_N1 = something.nonzero()[:, 1:]
        centre_N2 = (torch.cat([cell_N1 % GRID, cell_N1 // GRID], dim=1) + 0.5) / GRID
        reach_N4 = boxes_N4 - torch.cat([centre_N2, centre_N2], dim=1)
        losses["reach"] = _distance(self.reach(cells[something]), reach_N4 + 0.5)
        losses["whole"] = F.cross_entropy(whole[:, :-4], kinds_BCH[:, 0, 5]) + F.cross_entropy(whole[:, -4:], counts_B)
        right = (parts[0].argmax(-1) == kinds_BCH[..., 0])[something].float()
        losses["accuracy"] = right.mean().detach()
        return losses


def _distance(logits_NK: Tensor, shares_N4: Tensor) -> Tensor:
    """Return the cross entropy of four numbers of 0..1, read as mixtures of knots."""
    scores = logits_NK.float().reshape(len(logits_NK), 4, KNOTS).log_softmax(-1)
    return -(between_knots(shares_N4) * scores).sum(-1).mean()


def between_knots(shares: Tensor) -> Tensor:
    """Write numbers of 0..1 as weights of the two nearest knots: [...] -> [..., KNOTS]."""
    position = shares.clamp(0, 1) * (KNOTS - 1)
    knots = torch.arange(KNOTS, device=shares.device, dtype=position.dtype)
    return (1 - (position.unsqueeze(-1) - knots).abs()).clamp(min=0)
