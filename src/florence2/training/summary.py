"""Summary of a training run before its first step: samples, steps, weights, memory, hints."""

from collections.abc import Iterator

import torch
from peft import PeftModel
from torch import nn

from florence2.model.adapter.quantized import num_elements
from florence2.training.arguments import RunConfig, StepCount
from florence2.training.auto_batch_size import batch_shapes
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.dataset.image_augmentation import augmentation_summary
from florence2.training.optimizer.hints import learning_rate_hints
from florence2.training.performance.memory import GIB, estimate_memory, memory_warning
from florence2.training.prepare_model import TrainableModel, is_frozen


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the trainable parameters and all parameters."""
    sizes = [(num_elements(weight), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, is_trainable in sizes if is_trainable), sum(size for size, _ in sizes)


def training_summary(
    run: RunConfig, model: TrainableModel, dataset: Florence2Dataset, length: StepCount, dtype: torch.dtype
) -> Iterator[str]:
    """Describe a run, a line each: samples and steps, trainable weights, memory, hints on settings."""
    trainable, total = count_parameters(model)
    precision = str(dtype).removeprefix("torch.")
    device = next(model.parameters()).device
    shapes = batch_shapes(dataset, run.batch.batch_size, features=dataset.features is not None)
    estimate = estimate_memory(model, shapes, dtype)
    yield _samples_and_steps(run, dataset, length)
    fraction = f"{trainable:,} of {total:,} weights are trainable ({trainable / total:.2%})"
    yield f"{_method(model)}: {fraction}, {precision}"
    yield f"about {estimate.total / GIB:.1f} GiB of memory on the {device.type}" + memory_warning(estimate, device)
    yield from learning_rate_hints(run.optimizer)
    if dataset.features is not None:
        yield "the vision component is frozen: image features are computed once and cached on disk"
    elif is_frozen(model, "vision") and run.is_streaming:
        yield "the vision component is frozen, but image features of a stream are not cached"
    elif is_frozen(model, "vision") and dataset.image_augmentation.changes_images:
        yield "the vision component is frozen, but image features are not cached: augmentation changes the images"
    if dataset.image_augmentation.changes_images:
        yield augmentation_summary(dataset.samples, dataset.image_augmentation)
    if num_truncated := dataset.num_truncated():
        yield f"{num_truncated:,} targets are cut to {dataset.max_target_length} tokens, see `--max_length`"


def _method(model: nn.Module) -> str:
    if not isinstance(model, PeftModel):
        return "full fine-tuning"
    return f"LoRA of rank {model.peft_config[model.active_adapter].r}"


def _samples_and_steps(run: RunConfig, dataset: Florence2Dataset, length: StepCount) -> str:
    steps = f"{length.steps:,} steps of {length.samples_per_step}"
    if run.is_streaming:
        return f"samples from a stream, {steps}"
    samples = f"{length.num_samples:,} samples"
    if dataset.weights is not None:
        samples = f"{samples} an epoch, drawn from {len(dataset):,}"
    return f"{samples}, {steps} over {run.epochs:g} epochs"
