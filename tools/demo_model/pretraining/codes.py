"""A fixed code for the content of a grid cell: the interface between the vision and the language component.

The vision tower is trained to output these codes and the language model to read them. So both are trained at the same
time, and the language model on any number of scenes without rendering them. In the joint stage both may depart from
the codes. A code has dimensions for a name or word, a box, four attributes and the cell's position.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.demo_model.pretraining.cells import GRID_SIZE, HEADS

_NAME_DIM, _SIDE_DIM, _ATTRIBUTE_DIM, _POSITION_DIM = 48, 10, 32, 8
MODEL_DIM = _NAME_DIM + 4 * _SIDE_DIM + _ATTRIBUTE_DIM + _POSITION_DIM
_CODED_HEADS = HEADS[:6]  # letters only help to learn words
BOX_FREQUENCIES = (0.5, 1, 2, 4, 8)  # cycles per image side


class CellCodes(nn.Module):
    """Writes cells as seeded random vectors for classes and sinusoids for positions; it has no trainable weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = [_NAME_DIM, _NAME_DIM, *[_ATTRIBUTE_DIM] * 4]
        for (name, num_classes), width in zip(_CODED_HEADS, widths, strict=True):
            rows = torch.randn(num_classes + 1, width, generator=generator)
            rows[-1] = 0  # the row of the ignored class
            self.register_buffer(name, rows)
        centers = torch.arange(GRID_SIZE) / GRID_SIZE + 0.5 / GRID_SIZE
        x, y = torch.meshgrid(centers, centers, indexing="xy")
        positions = torch.stack([x, y], dim=-1).reshape(-1, 2)
        self.cell_positions: Tensor
        self.register_buffer("cell_positions", sinusoids(positions, (0.5, 1)).flatten(1))

    def forward(self, classes_BCH: Tensor, boxes_BC4: Tensor) -> Tensor:
        """Return the codes of scenes behind their mean, in the layout of the model's projector: [B, 1 + C, D]."""
        classes = {
            name: getattr(self, name)[classes_BCH[..., i].clamp(min=-1)] for i, (name, _) in enumerate(_CODED_HEADS)
        }
        has_box = (boxes_BC4[..., :1] >= 0).float()
        boxes = sinusoids(boxes_BC4, BOX_FREQUENCIES).flatten(-2) * has_box * 1.2
        attributes = (classes["order"] + classes["size"] + classes["position"] + classes["ground"]) / 2
        positions = self.cell_positions.expand(*boxes.shape[:-1], -1)
        cells = torch.cat([classes["name"] + classes["word"], boxes, attributes, positions], dim=-1)
        codes = torch.cat([cells.mean(1, keepdim=True), cells], dim=1)
        return F.layer_norm(codes, codes.shape[-1:])


def sinusoids(values: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    """Encode numbers from 0 to 1 as sines and cosines: [...] -> [..., 2 x frequencies]."""
    angles = values.unsqueeze(-1) * torch.tensor(frequencies, device=values.device) * (2 * math.pi)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
