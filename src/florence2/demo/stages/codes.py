"""A fixed code for what is in a cell: the language both halves of the model meet in.

The vision tower learns to write these codes, the language model learns to read them; so both can be taught at once,
and the language model on any number of scenes that nobody has to draw. Later both go on together and may move away
from the codes. The code has room for a name or word, a box, four smaller facts and the cell's own place.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.demo.stages.cells import GRID, HEADS

_NAME, _SIDE, _FACTS, _PLACE = 48, 10, 32, 8  # dimensions; together the model's width
_CODED = HEADS[:6]  # letters are there to learn words from; nobody needs them later
WAVES = (0.5, 1, 2, 4, 8)  # of a box's side, per picture


class CellCodes(nn.Module):
    """Seeded random vectors for kinds, waves for places; nothing in it learns."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = [_NAME, _NAME, _FACTS, _FACTS, _FACTS, _FACTS]
        for (name, size), width in zip(_CODED, widths, strict=True):
            # The last row is for "not here" and empty.
            rows = torch.randn(size + 1, width, generator=generator)
            rows[-1] = 0
            self.register_buffer(name, rows)
        steps = torch.arange(GRID) / GRID + 0.5 / GRID
        across, down = torch.meshgrid(steps, steps, indexing="xy")
        place = torch.stack([across, down], dim=-1).reshape(-1, 2)
        self.place_of_cell: Tensor
        self.register_buffer("place_of_cell", waves(place, (0.5, 1)).flatten(1))

    def forward(self, kinds_BCH: Tensor, boxes_BC4: Tensor) -> Tensor:
        """Write the codes of scenes, with their mean in front, as the model's projector would: [B, 1 + C, width]."""
        kinds = {name: getattr(self, name)[kinds_BCH[..., i].clamp(min=-1)] for i, (name, _) in enumerate(_CODED)}
        something = (boxes_BC4[..., :1] >= 0).float()
        box = waves(boxes_BC4, WAVES).flatten(-2) * something * 1.2
        facts = (kinds["order"] + kinds["size"] + kinds["place"] + kinds["ground"]) / 2
        here = self.place_of_cell.expand(*box.shape[:-1], -1)
        cells = torch.cat([kinds["name"] + kinds["word"], box, facts, here], dim=-1)
        codes = torch.cat([cells.mean(1, keepdim=True), cells], dim=1)
        return F.layer_norm(codes, codes.shape[-1:])


def waves(shares: Tensor, cycles: tuple[float, ...]) -> Tensor:
    """Write numbers of 0..1 as sines and cosines: [...] -> [..., 2 x cycles]."""
    angles = shares.unsqueeze(-1) * torch.tensor(cycles, device=shares.device) * (2 * math.pi)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
