"""The largest batch that fits into memory: tried on a GPU, expected on a CPU. A step sees as many pictures as before.

Knows devices and shapes; what is in the pictures does not matter.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from florence2.config import TrainingSettings
from florence2.log import logger
from florence2.model.storage.run_metadata import read_run_metadata
from florence2.model.tasks import find_task
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.performance.memory import GIB, estimate_memory, free_device_memory, is_out_of_memory
from florence2.training.performance.memory_estimate import BatchShapes, TrainingStep

SPARE = 0.1  # share of the free memory that stays free


def batch_shapes(dataset: Florence2Dataset, batch: int, *, features: bool = False) -> BatchShapes:
    """Say how large a batch is at most, with the longest target of all."""
    preprocessor = dataset.preprocessor
    longest = max(dataset.samples, key=lambda sample: len(sample.target or ""))
    prompt = preprocessor.prompt_ids(find_task(longest.task), longest.input, dataset.max_prompt_length)
    target = preprocessor.target_ids(longest.target or "", dataset.max_target_length)
    places = preprocessor.num_image_tokens
    return BatchShapes(batch, preprocessor.size, places, len(prompt) - places, len(target), features)


def auto_batch_size(
    learning: TrainingSettings,
    learner: nn.Module,
    dataset: Florence2Dataset,
    dtype: torch.dtype,
    checkpoint: Path | None,
) -> TrainingSettings:
    """Choose the largest batch that fits and the accumulation that keeps the step; a resumed training keeps its own."""
    if not learning.auto_batch:
        return learning
    images = learning.batch_size * learning.gradient_accumulation_steps
    batch = _before(checkpoint, images)
    if batch is None:
        device = next(learner.parameters()).device
        room = free_device_memory(device)
        batch = largest_fitting_divisor(images, lambda size: _fits(learner, batch_shapes(dataset, size), dtype, room))
        PartialState(cpu=device.type == "cpu")
        batch = min(gather_object([batch]))  # of all processes; each divides the step
        logger.info(f"batches of {batch}: the largest that part a step of {images} and fit into {room / GIB:.1f} GiB")
    else:
        logger.info(f"batches of {batch}, as before")
    return replace(learning, batch_size=batch, gradient_accumulation_steps=images // batch)


def largest_fitting_divisor(images: int, fits: Callable[[int], bool]) -> int:
    """Find the largest part of a step that fits; one picture is tried in any case."""
    parts = [size for size in range(images, 1, -1) if images % size == 0]
    return next((size for size in parts if fits(size)), 1)


def fits_by_trial(learner: nn.Module, shapes: BatchShapes, dtype: torch.dtype, room: int) -> bool:
    """Take a step of nothing but its size and see whether memory runs out; the learner stays as it was."""
    device, training = next(learner.parameters()).device, learner.training
    spare = 8 * sum(weight.numel() for weight in learner.parameters() if weight.requires_grad) + int(SPARE * room)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            reserve = torch.empty(spare, dtype=torch.uint8, device=device)  # for the optimizer, and odd pieces
            TrainingStep(learner.train(), shapes, dtype)()
            del reserve
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        return False
    finally:
        learner.train(training)
        learner.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _fits(learner: nn.Module, shapes: BatchShapes, dtype: torch.dtype, room: int) -> bool:
    if next(learner.parameters()).device.type != "cpu":
        return fits_by_trial(learner, shapes, dtype, room)
    return estimate_memory(learner, shapes, dtype).more <= (1 - SPARE) * room


def _before(checkpoint: Path | None, images: int) -> int | None:
    """Read the batch that a training chose before it was stopped, if its steps saw as many pictures."""
    record = read_run_metadata(checkpoint) if checkpoint else None
    if record is None or not record.settings.get("auto_batch"):
        return None
    batch = int(record.settings["batch_size"])
    return batch if batch * int(record.settings["gradient_accumulation_steps"]) == images else None
