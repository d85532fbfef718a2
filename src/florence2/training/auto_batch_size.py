"""Choice of the largest batch size that fits into memory, with the same samples in an optimizer step."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from florence2.devices import is_out_of_memory
from florence2.log import logger
from florence2.model.storage.run_metadata import read_run_metadata
from florence2.model.tasks import find_task
from florence2.training.arguments import BatchConfig
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.performance.memory import GIB, estimate_memory, free_device_memory
from florence2.training.performance.memory_estimate import BatchShapes, TrainingStep

RESERVE_FRACTION = 0.1  # of the free memory stays free


def batch_shapes(dataset: Florence2Dataset, batch_size: int, *, features: bool = False) -> BatchShapes:
    """Return the shapes of the largest batch: that with the longest target of the dataset."""
    preprocessor = dataset.preprocessor
    longest = max(dataset.samples, key=lambda sample: len(sample.target or ""))
    prompt = preprocessor.prompt_ids(find_task(longest.task), longest.input, dataset.max_prompt_length)
    is_literal = find_task(longest.task).has_literal_target
    target = preprocessor.target_ids(longest.target or "", dataset.max_target_length, literal=is_literal)
    num_image_tokens = preprocessor.num_image_tokens
    prompt_length = len(prompt) - num_image_tokens
    return BatchShapes(batch_size, preprocessor.size, num_image_tokens, prompt_length, len(target), features)


def auto_batch_size(
    batch: BatchConfig,
    model: nn.Module,
    dataset: Florence2Dataset,
    dtype: torch.dtype,
    checkpoint: Path | None,
) -> BatchConfig:
    """Return the largest batch that fits, with the samples per step of `batch`; a resumed run keeps its batch.

    A GPU tries batches, a CPU estimates their memory.
    """
    num_samples = batch.samples_per_step
    batch_size = _saved_batch_size(checkpoint, num_samples)
    if batch_size is None:
        device = next(model.parameters()).device
        free = free_device_memory(device)
        batch_size = largest_fitting_divisor(
            num_samples, lambda size: _fits(model, batch_shapes(dataset, size), dtype, free)
        )
        PartialState(cpu=device.type == "cpu")
        batch_size = min(gather_object([batch_size]))  # the smallest of all processes divides the step for each
        logger.info(
            f"batch size {batch_size}: the largest that divides {num_samples} and fits into {free / GIB:.1f} GiB"
        )
    else:
        logger.info(f"batch size {batch_size}, as in the checkpoint")
    return BatchConfig(batch_size, num_samples // batch_size)


def largest_fitting_divisor(number: int, fits: Callable[[int], bool]) -> int:
    """Return the largest divisor of a number that fits, or 1, which is not tried."""
    divisors = [size for size in range(number, 1, -1) if number % size == 0]
    return next((size for size in divisors if fits(size)), 1)


def fits_by_trial(model: nn.Module, shapes: BatchShapes, dtype: torch.dtype, free: int) -> bool:
    """Return whether a step of these shapes runs without running out of memory; the model does not change."""
    device, training = next(model.parameters()).device, model.training
    optimizer_bytes = 8 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            reserve = torch.empty(optimizer_bytes + int(RESERVE_FRACTION * free), dtype=torch.uint8, device=device)
            TrainingStep(model.train(), shapes, dtype)()
            del reserve
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _fits(model: nn.Module, shapes: BatchShapes, dtype: torch.dtype, free: int) -> bool:
    if next(model.parameters()).device.type != "cpu":
        return fits_by_trial(model, shapes, dtype, free)
    return estimate_memory(model, shapes, dtype).more <= (1 - RESERVE_FRACTION) * free


def _saved_batch_size(checkpoint: Path | None, samples_per_step: int) -> int | None:
    """Read the batch size that a run chose before it was stopped, if its steps have as many samples."""
    metadata = read_run_metadata(checkpoint) if checkpoint else None
    if metadata is None or not metadata.settings.get("auto_batch"):
        return None
    batch = BatchConfig(int(metadata.settings["batch_size"]), int(metadata.settings["gradient_accumulation_steps"]))
    return batch.batch_size if batch.samples_per_step == samples_per_step else None
