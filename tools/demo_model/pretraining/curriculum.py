"""The four stages of the pre-training: vision, language, joint and grounding.

The loss of a step depends only on the step, the seed and the rank of the process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration

from florence2.demo.scenes import Scene, make_scene
from florence2.devices import has_bfloat16
from florence2.model.processing import Preprocessor
from tools.demo_model.pretraining.cells import CellHeads, stack_cell_labels
from tools.demo_model.pretraining.codes import CellCodes
from tools.demo_model.pretraining.examples import GROUNDING_TASK_WEIGHTS, TextBatch, TextExample, sample_example
from tools.demo_model.pretraining.image_store import FIRST_SEED, SHARD_SIZE, Pixels
from tools.demo_model.pretraining.stage import Stage
from tools.demo_model.pretraining.text_loss import TextLoss, attention_loss, forward_text

StepLoss = Callable[[int], tuple[Tensor, dict[str, float]]]
CODE_ONLY_SEED = 1_000_000_000  # scenes of the language stage, which are not rendered, start at this seed
CODE_NOISE = 0.25  # standard deviation of the noise on the codes, so that the language model tolerates vision errors
EXAMPLES_PER_IMAGE = 4
HEAD_LOSS_WEIGHTS = {
    "object_name": 2.0,
    "name": 0.5,
    "word": 1.0,
    "letter": 1.0,
    "order": 1.0,
    "size": 0.3,
    "position": 0.5,
    "ground": 0.2,
    "sides": 1.0,
    "offsets": 1.0,
    "pooled": 0.3,
}
ORDER_COLUMN = 2  # of the labels of cells


@dataclass(frozen=True)
class Pretraining:
    """The model and everything that its stages share; `rank` is this process's among `world_size`."""

    model: Florence2ForConditionalGeneration
    preprocessor: Preprocessor
    heads: CellHeads
    codes: CellCodes
    text_loss: TextLoss
    image_shards: list[Pixels]
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def module(self) -> nn.ModuleDict:
        """Model and heads as one module, whose prefixes select what a stage trains."""
        return nn.ModuleDict({"florence": self.model, "heads": self.heads})

    @property
    def device(self) -> torch.device:
        """The device of all modules."""
        return self.text_loss.soft_labels.device

    def autocast(self) -> torch.autocast:
        """Autocast to bfloat16 where the device has it: four times as fast there, six times as slow elsewhere."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_bfloat16(self.device))

    def image_batch(self, step: int, batch_size: int) -> tuple[list[Scene], Tensor]:
        """Return this process's part of a shuffled batch: scenes and normalized pixels."""
        num_images = sum(len(shard) for shard in self.image_shards)
        start = (step * self.world_size + self.rank) * batch_size
        order = np.random.default_rng((self.seed, start // num_images)).permutation(num_images)
        indices = [int(order[(start + i) % num_images]) for i in range(batch_size)]
        pixels_BHWC = np.stack([self.image_shards[i // SHARD_SIZE][i % SHARD_SIZE] for i in indices])
        pixels_BCHW = self.preprocessor.normalize(torch.from_numpy(pixels_BHWC).to(self.device)).contiguous()
        return [make_scene(FIRST_SEED + i) for i in indices], pixels_BCHW

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        """Run vision tower and projector: [B, 1 + cells, D]."""
        features_BFD: Tensor = self.model.get_image_features(pixels_BCHW).pooler_output
        return features_BFD

    def vision_losses(self, features_BFD: Tensor, scenes: list[Scene]) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return the loss of the heads, the distance to the codes, and numbers for the log."""
        classes_BCH, boxes_BC4, num_objects_B = (each.to(self.device) for each in stack_cell_labels(scenes))
        losses = self.heads.losses(features_BFD, classes_BCH, boxes_BC4, num_objects_B)
        distance = (features_BFD.float() - self.codes(classes_BCH, boxes_BC4)).square().mean()
        names = ("object_name", "word", "letter", "sides", "offsets", "accuracy")
        total = torch.stack([weight * losses[name] for name, weight in HEAD_LOSS_WEIGHTS.items()]).sum()
        return total, distance, {name: losses[name].item() for name in names}

    def language_losses(
        self,
        features_BFD: Tensor,
        examples: list[TextExample],
        image_indices: list[int],
        object_orders_BC: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of examples, and numbers for the log; `image_indices` has the image of each example.

        Short and long examples run in two batches. With `object_orders_BC`, the index of the object in each cell, the
        loss also supervises the cross-attention.
        """
        by_length = sorted(range(len(examples)), key=lambda i: len(examples[i].target))
        word_loss = location_loss = cross_attention_loss = torch.zeros((), device=self.device)
        accuracy = 0.0
        for part in (by_length[: len(by_length) // 2], by_length[len(by_length) // 2 :]):
            batch = TextBatch.from_examples([examples[i] for i in part]).to(self.device)
            images = [image_indices[i] for i in part]
            with self.autocast():
                logits_NV, labels_N, attentions = forward_text(
                    self.model, features_BFD[images], batch, object_orders_BC is not None
                )
            if object_orders_BC is not None:
                loss = attention_loss(attentions, batch, object_orders_BC[images], self.text_loss.first_bin)
                cross_attention_loss = cross_attention_loss + loss / 2
            words, locations = self.text_loss(logits_NV, labels_N)
            word_loss, location_loss = word_loss + words / len(examples), location_loss + locations / len(examples)
            accuracy += self.text_loss.word_accuracy(logits_NV, labels_N) / 2
        numbers = {"words": word_loss.item(), "locations": location_loss.item(), "accuracy of words": accuracy}
        if object_orders_BC is not None:
            numbers["attention"] = cross_attention_loss.item()
        return (word_loss + location_loss) / 4 + cross_attention_loss, numbers


def vision_stage(run: Pretraining, steps: int, batch_size: int) -> Stage:
    """Train vision tower, projector and heads to predict the labels and the codes of the cells."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, pixels_BCHW = run.image_batch(step, batch_size)
        with run.autocast():
            head_loss, distance, numbers = run.vision_losses(run.encode_images(pixels_BCHW), scenes)
        return head_loss + 10 * distance, numbers | {"code distance": distance.item()}

    rates = {"florence.model.vision_tower": 1.2e-3, "florence.model.multi_modal_projector": 1.2e-3, "heads": 1.2e-3}
    return Stage("vision", run.module, loss, steps, batch_size * run.world_size, rates, max_grad_norm=5.0)


def language_stage(run: Pretraining, steps: int, batch_size: int) -> Stage:
    """Train the language model on the codes of scenes, which are not rendered."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        first = (step * run.world_size + run.rank) * batch_size
        random = Random(f"{run.seed} {first}")
        scenes = [make_scene(CODE_ONLY_SEED + run.seed * 100_000_000 + first + i) for i in range(batch_size)]
        classes_BCH, boxes_BC4, _ = (each.to(run.device) for each in stack_cell_labels(scenes))
        codes_BFD = run.codes(classes_BCH, boxes_BC4)
        generator = torch.Generator().manual_seed(first)
        codes_BFD = codes_BFD + CODE_NOISE * torch.randn(codes_BFD.shape, generator=generator).to(run.device)
        examples = [sample_example(scene, run.preprocessor, random) for scene in scenes]
        return run.language_losses(codes_BFD, examples, list(range(batch_size)))

    rates = {"florence.model.language_model": 1.5e-3}
    return Stage("language", run.module, loss, steps, batch_size * run.world_size, rates)


def joint_stage(run: Pretraining, steps: int, batch_size: int) -> Stage:
    """Train all weights on images and all tasks; the heads add a small loss."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, pixels_BCHW = run.image_batch(step, batch_size)
        random = Random(f"{run.seed} {step} {run.rank}")
        examples = [
            sample_example(scene, run.preprocessor, random) for scene in scenes for _ in range(EXAMPLES_PER_IMAGE)
        ]
        image_indices = [i for i in range(batch_size) for _ in range(EXAMPLES_PER_IMAGE)]
        with run.autocast():
            features_BFD = run.encode_images(pixels_BCHW)
            head_loss, _, vision_numbers = run.vision_losses(features_BFD, scenes)
        language_loss, language_numbers = run.language_losses(features_BFD, examples, image_indices)
        return language_loss + 0.2 * head_loss, language_numbers | vision_numbers

    rates = {"florence": 1e-3, "florence.model.vision_tower": 5e-4, "heads": 1e-3}
    batch_examples = batch_size * EXAMPLES_PER_IMAGE * run.world_size
    return Stage("joint", run.module, loss, steps, batch_examples, rates, max_grad_norm=2.0)


def grounding_stage(run: Pretraining, steps: int, batch_size: int) -> Stage:
    """Train only the language model, on image features and mostly on tasks that refer to an object by its name."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, pixels_BCHW = run.image_batch(step, batch_size)
        random = Random(f"find {run.seed} {step} {run.rank}")
        per_image = 2 * EXAMPLES_PER_IMAGE
        examples = [
            sample_example(scene, run.preprocessor, random, GROUNDING_TASK_WEIGHTS)
            for scene in scenes
            for _ in range(per_image)
        ]
        with torch.no_grad(), run.autocast():
            features_BFD = run.encode_images(pixels_BCHW)
        object_orders_BC = stack_cell_labels(scenes)[0][..., ORDER_COLUMN].to(run.device)
        image_indices = [i for i in range(batch_size) for _ in range(per_image)]
        return run.language_losses(features_BFD, examples, image_indices, object_orders_BC)

    rates = {"florence.model.language_model": 1e-3}
    batch_examples = batch_size * 2 * EXAMPLES_PER_IMAGE * run.world_size
    return Stage("grounding", run.module, loss, steps, batch_examples, rates, warmup_steps=50)
