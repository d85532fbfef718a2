"""Batches of questions about scenes: what is in the cells, what is asked, what should be said.

It tokenizes; it knows nothing of pictures, models and losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from florence2.demo.scenes import Scene
from florence2.demo.stages.cells import NOT_HERE, CellTruth, cell_truth
from florence2.demo.targets import SceneTarget, scene_target
from florence2.model.locations import encode_region
from florence2.model.processing import Preprocessor
from florence2.model.tasks import find_task

# How often each task is asked; what is harder to learn, or shown off more, is asked more.
SHARES = {
    "caption": 2.0,
    "detailed_caption": 1.5,
    "more_detailed_caption": 2.0,
    "ocr": 0.5,
    "ocr_with_region": 1.5,
    "od": 2.0,
    "dense_region_caption": 1.5,
    "region_proposal": 1.0,
    "caption_to_phrase_grounding": 4.0,
    "open_vocabulary_detection": 4.0,
    "referring_expression_segmentation": 4.0,
    "region_to_segmentation": 3.0,
    "region_to_category": 1.0,
    "region_to_description": 1.5,
    "region_to_ocr": 1.0,
}
# The last lesson is about finding what a word names: the others can do without, since all their answers have one order.
FINDING = SHARES | {
    "caption": 1.0,
    "detailed_caption": 1.0,
    "more_detailed_caption": 1.0,
    "ocr_with_region": 0.7,
    "od": 1.0,
    "dense_region_caption": 1.0,
    "region_proposal": 0.5,
    "open_vocabulary_detection": 6.0,
    "referring_expression_segmentation": 6.0,
    "region_to_segmentation": 2.0,
    "region_to_category": 0.5,
    "region_to_description": 0.7,
    "region_to_ocr": 0.5,
}


@dataclass(frozen=True)
class Question:
    """One question about one scene, in ids; the picture's places are not among them."""

    prompt: list[int]
    target: list[int]
    about: int = NOT_HERE  # the one thing that is asked about, by its order, where there is one


def ask(made: Scene, preprocessor: Preprocessor, random: Random, shares: dict[str, float] = SHARES) -> Question:
    """Ask one question about a scene, each task as often as its share says."""
    told: SceneTarget | None = None
    while told is None:
        (task,) = random.choices(list(shares), list(shares.values()))
        told = scene_target(made, task, random.randrange(24))
    prompt = preprocessor.prompt_ids(find_task(told.task), told.input)[preprocessor.num_image_tokens :]
    return Question(prompt, preprocessor.target_ids(told.text), _about(made, told))


def _about(made: Scene, told: SceneTarget) -> int:
    """Return which thing a question names or whose region it gives."""
    asked = told.input.split()[-1:]
    for order, thing in enumerate(made.objects):
        if asked in ([thing.name], [encode_region(thing.box, made.size)]):
            return order
    return NOT_HERE


@dataclass(frozen=True)
class Batch:
    """Questions side by side; padding is 1 in `prompt_BP` and not counted in `labels_BT`."""

    prompt_BP: Tensor
    labels_BT: Tensor
    about_B: Tensor

    @classmethod
    def of(cls, questions: Sequence[Question]) -> "Batch":
        """Pad prompts and targets."""
        prompts = [torch.tensor(question.prompt) for question in questions]
        targets = [torch.tensor(question.target) for question in questions]
        return cls(
            pad_sequence(prompts, batch_first=True, padding_value=1),
            pad_sequence(targets, batch_first=True, padding_value=NOT_HERE),
            torch.tensor([question.about for question in questions]),
        )

    def to(self, device: torch.device) -> "Batch":
        """Move both to a device."""
        return Batch(self.prompt_BP.to(device), self.labels_BT.to(device), self.about_B.to(device))


def cells_of(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack what is in the cells of scenes: kinds [B, C, heads], boxes [B, C, 4], counts [B]."""
    truths: list[CellTruth] = [cell_truth(made) for made in scenes]
    return (
        torch.from_numpy(np.stack([one.kinds for one in truths])),
        torch.from_numpy(np.stack([one.boxes for one in truths])),
        torch.tensor([one.count for one in truths]),
    )
