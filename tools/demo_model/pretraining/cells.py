"""Labels of the 8 x 8 grid cells of a scene, and the linear heads that predict them from the vision features.

With captions alone a vision tower this small does not learn to name objects in hours; with a label for each cell it
does in minutes. The heads predict name, word, order, size, position, ground, letter and box from the projected
features, so the language model finds this information in them. The heads are not saved with the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.demo.scenes import GROUNDS, POSITIONS, SIZES, WORDS, Box, Scene
from florence2.demo.sheet import all_emoji

GRID_SIZE = 8
IGNORE_INDEX = -100  # cross entropy skips it
NUM_KNOTS = 33  # a coordinate is predicted as a mixture of the two nearest of these positions

_GROUNDS, _SIZES, _POSITIONS = list(GROUNDS), list(SIZES), [position for row in POSITIONS for position in row]
_NUM_NAMES = len(all_emoji()) + 2
# Name and number of classes of each head, in the order of the columns of `CellLabels.classes`.
HEADS = (
    ("name", _NUM_NAMES),
    ("word", len(WORDS)),
    ("order", 4),
    ("size", len(_SIZES)),
    ("position", len(_POSITIONS)),
    ("ground", len(_GROUNDS)),
    ("letter", 26),
)


@dataclass(frozen=True)
class CellLabels:
    """The labels of the cells of one scene; boxes are normalized to 0..1 and -1 where a cell has none."""

    classes: npt.NDArray[np.int64]  # [cells, heads]
    boxes: npt.NDArray[np.float32]  # [cells, 4]
    num_objects_class: int  # number of objects minus one


def cell_labels(scene: Scene) -> CellLabels:
    """Label each cell with the object or word whose box contains the cell's center, else with the ground."""
    classes = np.full((GRID_SIZE, GRID_SIZE, len(HEADS)), IGNORE_INDEX, np.int64)
    boxes = np.full((GRID_SIZE, GRID_SIZE, 4), -1, np.float32)
    classes[..., 0], classes[..., 5] = 0, _GROUNDS.index(scene.background)
    names = [emoji.name for emoji in all_emoji()]
    for order, obj in enumerate(scene.objects):
        row = (1 + names.index(obj.name), IGNORE_INDEX, order, _SIZES.index(obj.size), _POSITIONS.index(obj.position))
        _fill_box(scene, obj.box, row, classes, boxes)
    if scene.sign:
        row = (
            *(_NUM_NAMES - 1, WORDS.index(scene.sign.word)),
            *(IGNORE_INDEX, IGNORE_INDEX, _POSITIONS.index(scene.sign.position)),
        )
        columns, rows = _fill_box(scene, scene.sign.box, row, classes, boxes)
        left, _, right, _ = scene.sign.box
        for column in range(columns.start, columns.stop):
            fraction = ((column + 0.5) / GRID_SIZE * scene.size[0] - left) / (right - left)
            letter = scene.sign.word[min(len(scene.sign.word) - 1, max(0, int(fraction * len(scene.sign.word))))]
            classes[rows, column, 6] = ord(letter) - ord("A")
    return CellLabels(classes.reshape(-1, len(HEADS)), boxes.reshape(-1, 4), len(scene.objects) - 1)


def _fill_box(
    scene: Scene, box: Box, row: tuple[int, ...], classes: npt.NDArray[np.int64], boxes: npt.NDArray[np.float32]
) -> tuple[slice, slice]:
    """Write the labels of one box into its cells; return the columns and rows of the cells."""
    normalized = [side / scene.size[i % 2] for i, side in enumerate(box)]
    spans = []
    for low, high in ((normalized[0], normalized[2]), (normalized[1], normalized[3])):
        first, stop = round(low * GRID_SIZE), round(high * GRID_SIZE)
        middle = int((low + high) / 2 * GRID_SIZE)
        spans.append(slice(first, stop) if first <= middle < stop else slice(middle, middle + 1))
    classes[spans[1], spans[0], :5] = row
    boxes[spans[1], spans[0]] = normalized
    return spans[0], spans[1]


def stack_cell_labels(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack the labels of scenes: classes [B, C, heads], boxes [B, C, 4], classes of the number of objects [B]."""
    labels = [cell_labels(scene) for scene in scenes]
    return (
        torch.from_numpy(np.stack([each.classes for each in labels])),
        torch.from_numpy(np.stack([each.boxes for each in labels])),
        torch.tensor([each.num_objects_class for each in labels]),
    )


class CellHeads(nn.Module):
    """Linear heads on the projected features; the pooled feature predicts the ground and the number of objects."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Linear(width, sum(num_classes for _, num_classes in HEADS))
        self.sides = nn.Linear(width, 4 * NUM_KNOTS)
        self.offsets = nn.Linear(width, 4 * NUM_KNOTS)
        self.pooled = nn.Linear(width, len(_GROUNDS) + 4)

    def losses(
        self, features_BFD: Tensor, classes_BCH: Tensor, boxes_BC4: Tensor, num_objects_B: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss of each head, and as "accuracy" the accuracy of the name in the cells with a box."""
        cells_BCD, pooled = features_BFD[:, 1:], self.pooled(features_BFD[:, 0]).float()
        losses = {}
        logits_by_head = self.classes(cells_BCD).float().split([num_classes for _, num_classes in HEADS], dim=-1)
        for column, ((name, _), logits) in enumerate(zip(HEADS, logits_by_head, strict=True)):
            is_labeled = classes_BCH[..., column] != IGNORE_INDEX
            total = F.cross_entropy(logits[is_labeled], classes_BCH[..., column][is_labeled], reduction="sum")
            losses[name] = total / is_labeled.sum().clamp(min=1)
        has_box = boxes_BC4[..., 0] >= 0
        # Names are learned last. Most cells are ground and would dominate the mean of the loss "name".
        losses["object_name"] = F.cross_entropy(logits_by_head[0][has_box], classes_BCH[..., 0][has_box])
        boxes_N4 = boxes_BC4[has_box]
        losses["sides"] = _knot_loss(self.sides(cells_BCD[has_box]), boxes_N4)
        # The offset of a side from the cell is easier to predict than its position in the image, and helps with it.
        cell_N2 = has_box.nonzero()[:, 1:]
        center_N2 = (torch.cat([cell_N2 % GRID_SIZE, cell_N2 // GRID_SIZE], dim=1) + 0.5) / GRID_SIZE
        offset_N4 = boxes_N4 - torch.cat([center_N2, center_N2], dim=1)
        losses["offsets"] = _knot_loss(self.offsets(cells_BCD[has_box]), offset_N4 + 0.5)
        losses["pooled"] = F.cross_entropy(pooled[:, :-4], classes_BCH[:, 0, 5])
        losses["pooled"] = losses["pooled"] + F.cross_entropy(pooled[:, -4:], num_objects_B)
        is_correct = (logits_by_head[0].argmax(-1) == classes_BCH[..., 0])[has_box].float()
        losses["accuracy"] = is_correct.mean().detach()
        return losses


def _knot_loss(logits_NK: Tensor, values_N4: Tensor) -> Tensor:
    """Return the cross entropy of four numbers from 0 to 1, each predicted as a mixture of knots."""
    log_probs = logits_NK.float().reshape(len(logits_NK), 4, NUM_KNOTS).log_softmax(-1)
    return -(knot_weights(values_N4) * log_probs).sum(-1).mean()


def knot_weights(values: Tensor) -> Tensor:
    """Encode numbers from 0 to 1 as weights of the two nearest knots: [...] -> [..., NUM_KNOTS]."""
    position = values.clamp(0, 1) * (NUM_KNOTS - 1)
    knots = torch.arange(NUM_KNOTS, device=values.device, dtype=position.dtype)
    return (1 - (position.unsqueeze(-1) - knots).abs()).clamp(min=0)
