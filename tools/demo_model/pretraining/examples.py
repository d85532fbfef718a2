"""Training examples: a prompt and a target about a scene in token ids, sampled by task and padded to batches.

It does not depend on images, models or losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from florence2.demo.scenes import Scene
from florence2.demo.targets import SceneTarget, scene_target
from florence2.model.locations import encode_region
from florence2.model.processing import Preprocessor
from florence2.model.tasks import find_task
from tools.demo_model.pretraining.cells import IGNORE_INDEX

# Sampling weights of the tasks: more for those that are harder to learn or that the documentation shows more.
TASK_WEIGHTS = {
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
# The last stage trains grounding: all other answers follow from the order of the objects, without it.
GROUNDING_TASK_WEIGHTS = TASK_WEIGHTS | {
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
MAX_INPUT_INDEX = 24  # more inputs than any task has for a scene


@dataclass(frozen=True)
class TextExample:
    """The token ids of a prompt, without image tokens, and of its target."""

    prompt: list[int]
    target: list[int]
    object_index: int = IGNORE_INDEX  # the only object that the prompt refers to, if there is one


def sample_example(
    scene: Scene, preprocessor: Preprocessor, random: Random, weights: dict[str, float] = TASK_WEIGHTS
) -> TextExample:
    """Sample a task by its weight and an input of it for a scene, and tokenize both prompt and target."""
    target: SceneTarget | None = None
    while target is None:
        (task,) = random.choices(list(weights), list(weights.values()))
        target = scene_target(scene, task, random.randrange(MAX_INPUT_INDEX))
    prompt = preprocessor.prompt_ids(find_task(target.task), target.input)[preprocessor.num_image_tokens :]
    return TextExample(prompt, preprocessor.target_ids(target.text), _referred_object(scene, target))


def _referred_object(scene: Scene, target: SceneTarget) -> int:
    """Return the index of the object whose name or region ends the input."""
    last_word = target.input.split()[-1:]
    for index, obj in enumerate(scene.objects):
        if last_word in ([obj.name], [encode_region(obj.box, scene.size)]):
            return index
    return IGNORE_INDEX


@dataclass(frozen=True)
class TextBatch:
    """Padded examples; the padding is 1 in `prompt_BP` and ignored in `labels_BT`."""

    prompt_BP: Tensor
    labels_BT: Tensor
    object_index_B: Tensor

    @classmethod
    def from_examples(cls, examples: Sequence[TextExample]) -> "TextBatch":
        """Pad prompts and targets to the longest."""
        prompts = [torch.tensor(example.prompt) for example in examples]
        targets = [torch.tensor(example.target) for example in examples]
        return cls(
            pad_sequence(prompts, batch_first=True, padding_value=1),
            pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX),
            torch.tensor([example.object_index for example in examples]),
        )

    def to(self, device: torch.device) -> "TextBatch":
        """Return the batch on a device."""
        return TextBatch(self.prompt_BP.to(device), self.labels_BT.to(device), self.object_index_B.to(device))
