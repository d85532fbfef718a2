"""GPU memory of training by configuration, counted: weights, optimizer state, and activations of a step.

    python -m benchmarks.training_memory --sizes base large

Nothing is trained. The weights are random and lie in main memory; the activations and gradients are those of a step
with fake tensors, as in the summary of `florence2 train`. What a GPU needs besides, its context and the fragments of
its allocator, is the `--reserve`. Counted so, base with LoRA at batches of 2 and 8 needs 4.9 and 18.4 GiB, where an
H100's peak was 4.9 and 17.8 (benchmarks/results/2026-11-26-training-cuda-base-bfloat16.md). Prints a table, and one
line of JSON last.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks.benchmark_models import random_model
from florence2.config import DEFAULT_TARGET_MODULES
from florence2.model.adapter.quantized import quantize_weights, without_dequantization
from florence2.training.performance.memory import GIB, checkpoint_activations
from florence2.training.performance.memory_estimate import BatchShapes, estimate_step_memory
from florence2.training.prepare_model import LoraOptions, prepare_model_for_training

LORA = LoraOptions(4, 4, 0.25, DEFAULT_TARGET_MODULES)
METHODS = ("full", "lora", "qlora")
COUNTED_BATCHES = (1, 2)  # activations grow by the same number of bytes with each sample
PROMPT_LENGTH, TARGET_LENGTH = 20, 66


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["base", "large"], choices=("base", "large", "tiny"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--cards", type=int, nargs="+", default=[8, 12, 16, 24], help="GiB of graphics cards")
    parser.add_argument("--reserve", type=float, default=1.0, help="GiB of a card that training cannot use")
    options = parser.parse_args()
    rows = [
        count(size, method, checkpoints)
        for size in options.sizes
        for method in options.methods
        for checkpoints in (False, True)
    ]
    print(table(rows, options.cards, options.reserve))
    print(json.dumps({"torch": torch.__version__, "options": vars(options), "rows": rows}))


def count(size: str, method: str, checkpoints: bool) -> dict[str, Any]:
    """Count the bytes of a configuration in bfloat16; those of a step for the counted batch sizes."""
    base, _ = random_model(size, "cpu", "float32" if method == "full" else "bfloat16")
    if method == "qlora":
        quantize_weights(base, torch.device("cpu"), torch.bfloat16)
    image_tokens = (768 // 32) ** 2 + 1
    model = prepare_model_for_training(
        base,
        lora=None if method == "full" else LORA,
        freeze="none",
        dtype=torch.bfloat16,
        num_image_tokens=image_tokens,
    )
    if checkpoints:
        checkpoint_activations(model)
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    steps = []
    for batch in COUNTED_BATCHES:
        shapes = BatchShapes(batch, (768, 768), image_tokens, PROMPT_LENGTH, TARGET_LENGTH)
        with without_dequantization(model):
            steps.append(estimate_step_memory(model, shapes, torch.bfloat16))
    return {
        "size": size,
        "method": method,
        "checkpoints": checkpoints,
        "weights": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "optimizer": 8 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "steps": steps,
    }


def total(row: dict[str, Any], batch: int) -> float:
    """Return the bytes at a batch size."""
    first, second = row["steps"]
    return float(row["weights"] + row["optimizer"] + first + (batch - 1) * (second - first))


def largest_batch(row: dict[str, Any], free: float) -> int:
    """Return the largest batch that fits; 0 where none does."""
    first, second = row["steps"]
    return max(int((free - total(row, 1)) // (second - first)) + 1, 0) if free >= total(row, 1) else 0


def table(rows: list[dict[str, Any]], cards: list[int], reserve: float) -> str:
    """Format the rows as Markdown: memory at batch size 1, and the largest batch of each card."""
    titles = " | ".join(f"largest batch in {card} GB" for card in cards)
    lines = [
        f"| | weights and optimizer, GiB | with a batch of 1 | of 4 | {titles} |",
        "|---" * (len(cards) + 4) + "|",
    ]
    names = {"full": "`--rank 0`", "lora": "LoRA", "qlora": "LoRA, `--quantize`"}
    for row in rows:
        name = f"{row['size']}, {names[row['method']]}" + (", `--gradient_checkpointing`" if row["checkpoints"] else "")
        fixed = (row["weights"] + row["optimizer"]) / GIB
        fits = [str(largest_batch(row, (card - reserve) * GIB) or "none") for card in cards]
        cells = [f"{fixed:.2f}", *(f"{total(row, batch) / GIB:.1f}" for batch in (1, 4)), *fits]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
