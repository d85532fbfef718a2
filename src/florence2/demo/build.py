"""Build the bundled model from nothing: `python -m florence2.demo.build --out DIR`.

Four lessons, each resumed where it was cut short: see what is in the cells, speak from cells' codes, both together, and
find what words name.
On a busy CPU several processes of one thread learn faster than one of several threads; start them with
`python -m torch.distributed.run --nproc-per-node 2 -m florence2.demo.build --out DIR`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import distributed
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2.demo.scenes import make_scene
from florence2.demo.scores import WANTED, score
from florence2.demo.stages.blank import WIDTH, blank_model, generation_settings, make_processor
from florence2.demo.stages.cells import CellHeads
from florence2.demo.stages.codes import CellCodes
from florence2.demo.stages.images import Pixels, draw_store
from florence2.demo.stages.lessons import Class, find, see, see_and_speak, speak_from_codes
from florence2.demo.stages.speech import SpeechLoss, start_embedding, twins
from florence2.model.processing import Preprocessor

HELD_OUT_SEED = 5_000_000
NUM_IMAGES = 40_000
STEPS = ((2500, 32), (700, 256), (1700, 32), (700, 16))  # of each lesson, and the size of a batch


def main() -> None:
    """Read the command line, run the lessons, save, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--work", type=Path, help="folder for pictures and unfinished lessons (OUT/../build)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="share of the full number of steps, to try things out")
    parser.add_argument("--scenes", type=int, default=400, help="held-out scenes to score on")
    options = parser.parse_args()
    steps = tuple((max(1, round(steps * options.share)), batch) for steps, batch in STEPS)
    build(options.out, options.work or options.out.parent / "build", options.seed, steps)
    if _place()[0] == 0:
        _show(scores_of(options.out, options.scenes))


def build(
    out: Path, work: Path, seed: int = 0, steps: Sequence[tuple[int, int]] = STEPS, num_images: int = NUM_IMAGES
) -> None:
    """Run the lessons that are not done yet, and save the model in transformers' layout."""
    rank, world = _place()
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    store = draw_store(work / "pictures", num_images, _tell)
    processor = make_processor(work / f"processor-{rank}")  # one for each process: they do not wait for each other
    room = open_class(processor, store, seed, rank, world)
    for learn, (num, batch) in zip((see, speak_from_codes, see_and_speak, find), steps, strict=True):
        learn(room, num, batch // world).run(work)
    if rank == 0:
        save(room.model, processor, out)


def open_class(processor: Florence2Processor, store: list[Pixels], seed: int, rank: int = 0, world: int = 1) -> Class:
    """Bring together the blank model and all that teaches it."""
    torch.manual_seed(seed)
    preprocessor = Preprocessor.from_processor(processor)
    model = blank_model(len(processor.tokenizer), preprocessor.image_token_id)
    first_bin = processor.tokenizer.convert_tokens_to_ids("<loc_0>")
    start_embedding(model, first_bin, twins(processor.tokenizer.get_vocab()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    heads, codes, speech = CellHeads(WIDTH), CellCodes(seed), SpeechLoss(first_bin)
    return Class(
        model.to(device), preprocessor, heads.to(device), codes.to(device), speech.to(device), store, seed, rank, world
    )


def save(model: Florence2ForConditionalGeneration, processor: Florence2Processor, out: Path) -> None:
    """Write weights in half precision, settings and processor."""
    model = model.to("cpu", torch.float16)
    model.generation_config = generation_settings(model.config.image_token_id)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def scores_of(folder: Path, num: int, first_seed: int = HELD_OUT_SEED, tasks: tuple[str, ...] = ()) -> dict[str, float]:
    """Score a saved model on scenes it never saw."""
    model = Florence2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    preprocessor = Preprocessor.from_processor(Florence2Processor.from_pretrained(folder))
    return score(model, preprocessor, [make_scene(first_seed + i) for i in range(num)], tasks)


def _show(scores: dict[str, float]) -> None:
    for name, value in scores.items():
        wanted = f"   wanted {WANTED[name]:.2f}" if name in WANTED else ""
        sys.stdout.write(f"{name:48} {value:.3f}{wanted}\n")


def _tell(done: int, num: int) -> None:
    sys.stderr.write(f"drew {done} of {num} pictures\n")


def _place() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


if __name__ == "__main__":
    main()
