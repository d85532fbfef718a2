"""Pre-train the bundled model from scratch: `python -m tools.demo_model.build --out DIR`.

There are four stages, and an interrupted stage resumes: vision, language, joint and grounding.
On a busy CPU several processes of one thread are faster than one process of several threads; start them with
`python -m torch.distributed.run --nproc-per-node 2 -m tools.demo_model.build --out DIR`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import distributed
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2.model.processing import Preprocessor
from tools.demo_model.pretraining.cells import CellHeads
from tools.demo_model.pretraining.codes import MODEL_DIM, CellCodes
from tools.demo_model.pretraining.curriculum import (
    Pretraining,
    grounding_stage,
    joint_stage,
    language_stage,
    vision_stage,
)
from tools.demo_model.pretraining.image_store import Pixels, open_image_store
from tools.demo_model.pretraining.initial_model import create_model, generation_config, train_processor
from tools.demo_model.pretraining.text_loss import TextLoss, bare_and_spaced_words, initialize_embedding
from tools.demo_model.scores import print_scores, score_checkpoint

NUM_IMAGES = 40_000
STAGES = (vision_stage, language_stage, joint_stage, grounding_stage)
STEPS = ((2500, 32), (700, 256), (1700, 32), (700, 16))  # steps and batch size of each stage


def main() -> None:
    """Parse the command line, run the stages, save the model and print its scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--work", type=Path, help="folder for images and stage checkpoints (default: OUT/../build)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps_factor", type=float, default=1.0, help="multiplies the steps of every stage")
    parser.add_argument("--num_scenes", type=int, default=400, help="held-out scenes to score on")
    args = parser.parse_args()
    steps = tuple((max(1, round(steps * args.steps_factor)), batch_size) for steps, batch_size in STEPS)
    build(args.out, args.work or args.out.parent / "build", args.seed, steps)
    if _rank_and_world_size()[0] == 0:
        print_scores(score_checkpoint(args.out, args.num_scenes))


def build(
    out: Path, work: Path, seed: int = 0, steps: Sequence[tuple[int, int]] = STEPS, num_images: int = NUM_IMAGES
) -> None:
    """Run the stages that are not complete yet, and save the model in transformers' layout."""
    rank, world_size = _rank_and_world_size()
    if world_size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    image_shards = open_image_store(work / "images", num_images, _report_images)
    processor = train_processor(work / f"processor-{rank}")  # one for each process, so that none waits
    run = create_pretraining(processor, image_shards, seed, rank, world_size)
    for create_stage, (num_steps, batch_size) in zip(STAGES, steps, strict=True):
        create_stage(run, num_steps, batch_size // world_size).run(work)
    if rank == 0:
        save(run.model, processor, out)


def create_pretraining(
    processor: Florence2Processor, image_shards: list[Pixels], seed: int, rank: int = 0, world_size: int = 1
) -> Pretraining:
    """Create the initial model, the heads, the codes and the loss."""
    torch.manual_seed(seed)
    preprocessor = Preprocessor.from_processor(processor)
    model = create_model(len(processor.tokenizer), preprocessor.image_token_id)
    first_bin = processor.tokenizer.convert_tokens_to_ids("<loc_0>")
    initialize_embedding(model, first_bin, bare_and_spaced_words(processor.tokenizer.get_vocab()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    heads, codes, text_loss = CellHeads(MODEL_DIM), CellCodes(seed), TextLoss(first_bin)
    return Pretraining(
        *(model.to(device), preprocessor, heads.to(device), codes.to(device), text_loss.to(device)),
        image_shards,
        seed,
        rank,
        world_size,
    )


def save(model: Florence2ForConditionalGeneration, processor: Florence2Processor, out: Path) -> None:
    """Write float16 weights, configs and processor."""
    model = model.to("cpu", torch.float16)
    model.generation_config = generation_config(model.config.image_token_id)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def _report_images(done: int, num_images: int) -> None:
    sys.stderr.write(f"rendered {done} of {num_images} images\n")


def _rank_and_world_size() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


if __name__ == "__main__":
    main()
