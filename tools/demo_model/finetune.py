"""Train the language model of the bundled model further, for example after a change of the targets.

    python -m tools.demo_model.finetune --out DIR

The vision component is frozen, and the features of the training images are computed once. All tasks are mixed, with
more weight on captions, and two of five scenes contain an object of `--names`, whose phrases are new to the model.
Weights and processor are saved in the format of the bundled model. An interrupted run resumes.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2.demo.scenes import Scene, make_scene
from florence2.model.processing import Preprocessor
from tools.demo_model.pretraining.cells import CellHeads, stack_cell_labels
from tools.demo_model.pretraining.codes import MODEL_DIM, CellCodes
from tools.demo_model.pretraining.curriculum import ORDER_COLUMN, Pretraining
from tools.demo_model.pretraining.examples import TASK_WEIGHTS, sample_example
from tools.demo_model.pretraining.image_store import render_resized
from tools.demo_model.pretraining.stage import Stage
from tools.demo_model.pretraining.text_loss import TextLoss
from tools.demo_model.scores import BUNDLED_MODEL, print_scores, score_checkpoint

FIRST_SEED = 20_000_000  # scenes that neither the pre-training nor any score uses
IMAGES_PER_STEP, EXAMPLES_PER_IMAGE = 16, 8
FINETUNING_TASK_WEIGHTS = TASK_WEIGHTS | {
    "caption": 4.0,
    "detailed_caption": 2.0,
    "more_detailed_caption": 2.5,
    "ocr": 0.7,
    "od": 1.5,
    "region_proposal": 0.7,
    "open_vocabulary_detection": 3.5,
    "referring_expression_segmentation": 5.0,
    "region_to_category": 0.7,
    "region_to_description": 1.0,
    "region_to_ocr": 0.8,
}


@dataclass(frozen=True)
class FinetuningRecipe:
    """Length, learning rate, mixture of tasks and seed of a fine-tuning."""

    max_steps: int
    learning_rate: float = 4e-4
    task_weights: dict[str, float] = field(default_factory=lambda: FINETUNING_TASK_WEIGHTS)
    seed: int = 0


def main() -> None:
    """Parse the command line, train, save the model and print its scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--work", type=Path, help="folder for features and checkpoints (default: OUT/../finetune)")
    parser.add_argument("--model_path", type=Path, default=BUNDLED_MODEL, help="model to start from (default: bundled)")
    parser.add_argument("--names", nargs="*", default=["grapes", "cherries", "broccoli", "corn"])
    parser.add_argument("--grounding_weight", type=float, default=4.0, help="of caption_to_phrase_grounding")
    parser.add_argument("--learning_rate", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_steps", type=int, default=700)
    parser.add_argument("--num_images", type=int, default=8000)
    parser.add_argument("--num_scenes", type=int, default=400, help="held-out scenes to score on")
    args = parser.parse_args()
    scenes = training_scenes(args.num_images, args.names)
    recipe = FinetuningRecipe(
        args.max_steps,
        args.learning_rate,
        FINETUNING_TASK_WEIGHTS | {"caption_to_phrase_grounding": args.grounding_weight},
        args.seed,
    )
    finetune(args.model_path, args.out, args.work or args.out.parent / "finetune", scenes, recipe)
    print_scores(score_checkpoint(args.out, args.num_scenes))


def training_scenes(num_scenes: int, names: Sequence[str]) -> list[Scene]:
    """Return scenes of successive seeds; two of five have an object with one of the names."""
    scenes: list[Scene] = []
    seed = FIRST_SEED
    while len(scenes) < num_scenes:
        scene = make_scene(seed)
        seed += 1
        if len(scenes) % 5 >= 2 or not names or {obj.name for obj in scene.objects} & set(names):
            scenes.append(scene)
    return scenes


def finetune(model_path: Path, out: Path, work: Path, scenes: list[Scene], recipe: FinetuningRecipe) -> None:
    """Train the language model on the scenes, and save the model."""
    model = Florence2ForConditionalGeneration.from_pretrained(
        model_path, dtype=torch.float32, attn_implementation="eager"
    )
    processor = Florence2Processor.from_pretrained(model_path)
    text_loss = TextLoss(processor.tokenizer.convert_tokens_to_ids("<loc_0>"))
    preprocessor = Preprocessor.from_processor(processor)
    run = Pretraining(model, preprocessor, CellHeads(MODEL_DIM), CellCodes(), text_loss, [], seed=0)
    work.mkdir(parents=True, exist_ok=True)
    finetuning_stage(run, scenes, _features(run, scenes, work / "features.pt"), recipe).run(work)
    model.to(torch.float16).save_pretrained(out)
    for file in model_path.glob("*.json"):  # configs, tokenizer and image processor do not change
        shutil.copy(file, out)


def _features(run: Pretraining, scenes: list[Scene], file: Path, batch_size: int = 50) -> Tensor:
    """Return the projected features [images, 1 + cells, D] of scenes, from `file` if it exists."""
    if not file.exists():
        batches = []
        with torch.inference_mode():
            for start in range(0, len(scenes), batch_size):
                pixels_BHWC = np.stack([render_resized(scene) for scene in scenes[start : start + batch_size]])
                pixels_BCHW = run.preprocessor.normalize(torch.from_numpy(pixels_BHWC)).contiguous()
                batches.append(run.encode_images(pixels_BCHW))
        torch.save(torch.cat(batches), file)
    features: Tensor = torch.load(file, weights_only=True)
    return features


def finetuning_stage(run: Pretraining, scenes: list[Scene], features: Tensor, recipe: FinetuningRecipe) -> Stage:
    """Train only the language model on cached features, with supervised cross-attention."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        start = step * IMAGES_PER_STEP
        order = np.random.default_rng((recipe.seed, start // len(scenes))).permutation(len(scenes))
        indices = [int(order[(start + i) % len(scenes)]) for i in range(IMAGES_PER_STEP)]
        random = Random(f"finetuning {recipe.seed} {step}")
        batch = [scenes[i] for i in indices]
        examples = [
            sample_example(scene, run.preprocessor, random, recipe.task_weights)
            for scene in batch
            for _ in range(EXAMPLES_PER_IMAGE)
        ]
        object_orders_BC = stack_cell_labels(batch)[0][..., ORDER_COLUMN]
        image_indices = [i for i in range(IMAGES_PER_STEP) for _ in range(EXAMPLES_PER_IMAGE)]
        return run.language_losses(features[indices], examples, image_indices, object_orders_BC)

    rates = {"florence.model.language_model": recipe.learning_rate}
    return Stage(
        "finetuning", run.module, loss, recipe.max_steps, IMAGES_PER_STEP * EXAMPLES_PER_IMAGE, rates, warmup_steps=30
    )


if __name__ == "__main__":
    main()
