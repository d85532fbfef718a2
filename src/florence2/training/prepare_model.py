"""What learns: LoRA or all weights, with one half of the model frozen if so asked, and how it is written to disk.

Knows the model's halves and the settings that choose between them.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers.models.florence2.modeling_florence2 import Florence2VisionChannelAttention

from florence2.config import LoraSettings, ModelSettings, TrainSettings
from florence2.devices import pick_device, training_dtype
from florence2.errors import UserError
from florence2.model.adapter import quantized
from florence2.model.adapter.lora import add_lora, merge, save_adapter
from florence2.model.adapter.target_modules import MODULE_PREFIXES, is_in_component, resolve_target_modules
from florence2.model.load import TEXT_DROPOUT_RATES, VISION_DROPOUT_RATES
from florence2.model.storage.run_metadata import RunMetadata, write_run_metadata
from florence2.settings_io import parse_options
from florence2.training.arguments import StepCount
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.dataset.image_augmentation import augmentation_summary
from florence2.training.optimizer.checks import check_learning_rate
from florence2.training.optimizer.create import parse_optimizer_args
from florence2.training.performance import cpu_dropout as dropping
from florence2.training.performance import lora_linear as branches
from florence2.training.performance.auto_batch_size import batch_shapes
from florence2.training.performance.feature_cache import patch_forward
from florence2.training.performance.memory import GIB, estimate_memory, memory_warning

# What peft calls our flags.
FLAG_OF_LORA_ARG = {
    "r": "--rank",
    "lora_alpha": "--alpha",
    "lora_dropout": "--dropout",
    "target_modules": "--target_modules",
}


def check_quantize(settings: TrainSettings) -> None:
    """Refuse a base in 4 bits where it cannot be, before anything is read."""
    if not settings.model.quantize:
        return
    if settings.lora.rank == 0:
        raise UserError("`--quantize` does not go with `--rank 0`: what is packed cannot learn", "give a `--rank`")
    quantized.check_quantization_available(pick_device(settings.model.device))


def parse_dropout_rates(settings: ModelSettings) -> dict[str, float]:
    """Read `--model_dropout_args`."""
    given = parse_options(
        "--model_dropout_args", settings.model_dropout_args, [*VISION_DROPOUT_RATES, *TEXT_DROPOUT_RATES]
    )
    for name, rate in given.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise UserError(f"`--model_dropout_args {name}={rate}` is no rate", "give a number from 0 to below 1")
    return {name: float(rate) for name, rate in given.items()}


def prepare_model_for_training(model: nn.Module, settings: ModelSettings, lora: LoraSettings) -> nn.Module:
    """Put a new LoRA on a model, or go on with the one it brought, or let all its weights learn; freeze a half.

    What learns is float32, whatever the rest is.
    """
    if isinstance(model, PeftModel):
        learner: nn.Module = _resume_adapter(model)
    elif lora.rank > 0:
        learner = _with_lora(model, settings, lora)
    else:
        learner = model.requires_grad_(True).float()
    for name, weight in learner.named_parameters():
        if is_in_component(name, settings.freeze):
            weight.requires_grad_(False)
    for name, module in learner.named_modules():
        if name.endswith("model.vision_tower"):
            _use_channels_last(module, training_dtype(settings.dtype, module.device))
    patch_forward(learner)
    branches.use_fused_lora(learner)
    dropping.use_cpu_dropout(learner)
    if not any(weight.requires_grad for weight in learner.parameters()):
        raise UserError(f"with `--freeze {settings.freeze}` there is nothing left to train", "leave `--freeze` out")
    return learner


def _use_channels_last(tower: Any, dtype: torch.dtype) -> None:
    """Lay a vision tower out as pictures come, and let its channels attend in bfloat16 where all is computed in it.

    A GPU has no quick way for heads as wide as a picture has places, and torch's slow one multiplies in float32;
    float16 needs that, for sums over all places are too large for it.
    """
    tower.to(memory_format=torch.channels_last)
    if tower.device.type != "cuda" or dtype != torch.bfloat16:
        return
    for module in tower.modules():
        if isinstance(module, Florence2VisionChannelAttention):
            module.config = copy.copy(module.config)
            module.config._attn_implementation = "eager"


def is_frozen(learner: nn.Module, half: str) -> bool:
    """Tell whether nothing learns in a half, `vision` or `language`."""
    return not any(weight.requires_grad and is_in_component(name, half) for name, weight in learner.named_parameters())


def frozen_modules(learner: nn.Module) -> tuple[nn.Module, ...]:
    """Give the modules that must not drop anything while the rest learns: those of the half where nothing does."""
    names = {name.rstrip(".") for half, names in MODULE_PREFIXES.items() if is_frozen(learner, half) for name in names}
    return tuple(module for name, module in learner.named_modules() if name.removeprefix("base_model.model.") in names)


def inference_copy(learner: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a learner as it would answer: LoRA merged, in eval mode. The learner itself is not touched."""
    twin = copy.deepcopy(learner).float()  # rounded first, the weights would lose more to the merge than they must
    plain = merge(twin) if isinstance(twin, PeftModel) else twin
    return plain.requires_grad_(False).to(dtype).eval()


def count_parameters(learner: nn.Module) -> tuple[int, int]:
    """Count the weights that learn, and all."""
    sizes = [(quantized.num_elements(weight), weight.requires_grad) for weight in learner.parameters()]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)


def training_summary(
    settings: TrainSettings, learner: nn.Module, dataset: Florence2Dataset, length: StepCount, dtype: torch.dtype
) -> Iterator[str]:
    """Say what will be trained: captions, steps, weights, memory."""
    learning, lora = settings.training, settings.lora
    learns, every = count_parameters(learner)
    device = next(learner.parameters()).device
    shapes = batch_shapes(dataset, learning.batch_size, features=dataset.features is not None)
    need = estimate_memory(learner, shapes, dtype)
    kind = f"LoRA of rank {lora.rank}" if isinstance(learner, PeftModel) else "all weights"
    yield _amount(settings, dataset, length)
    yield f"{kind}: {learns:,} of {every:,} weights learn ({learns / every:.2%}), {str(dtype)[6:]} arithmetic"
    yield f"about {need.total / GIB:.1f} GiB of memory on the {device.type}" + memory_warning(need, device)
    yield from check_learning_rate(
        learning.optim,
        learning.learning_rate,
        learning.lr_scheduler_type,
        parse_optimizer_args(learning.optimizer_args),
    )
    if dataset.features is not None:
        yield "no weight that sees pictures learns: what they look like is computed once and kept on disk"
    elif settings.data.streaming and is_frozen(learner, "vision"):
        yield "pictures come by in a stream, so what they look like is not kept though nothing learns it"
    elif dataset.image_augmentation.changes_images and is_frozen(learner, "vision"):
        yield "pictures are seen otherwise each time, so what they look like cannot be kept though nothing learns it"
    if dataset.image_augmentation.changes_images:
        yield augmentation_summary(dataset.samples, dataset.image_augmentation)
    if cut := dataset.num_truncated():
        yield f"{cut:,} captions are longer than {dataset.max_target_length} tokens and are cut, see `--max_length`"


def _amount(settings: TrainSettings, dataset: Florence2Dataset, length: StepCount) -> str:
    steps = f"{length.steps:,} steps of {length.samples_per_step}"
    if settings.data.streaming:
        return f"captions as they come, {steps}"
    captions = f"{length.num_samples:,} captions"
    if dataset.weights is not None:
        captions = f"{captions} an epoch, drawn from {len(dataset):,}"
    return f"{captions}, {steps} over {settings.training.epochs:g} epochs"


@dataclass(frozen=True)
class ModelSaver:
    """Writes what a prediction needs into a folder: weights, processor, record."""

    processor: Any
    metadata: RunMetadata

    def __call__(self, model: nn.Module, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write model, processor and record; `state` holds the weights where they had to be gathered."""
        if isinstance(model, PeftModel):
            save_adapter(model, folder, self.metadata.base, self.metadata.revision, state)
        else:
            whole: Any = model
            whole.save_pretrained(folder, state_dict=None if state is None else dict(state))
        self.processor.save_pretrained(folder)
        write_run_metadata(folder, self.metadata)


def _with_lora(model: nn.Module, settings: ModelSettings, lora: LoraSettings) -> PeftModel:
    given = parse_options("--lora_args", lora.lora_args, [field.name for field in fields(LoraConfig)])
    for name in given.keys() & FLAG_OF_LORA_ARG.keys():
        raise UserError(f"`--lora_args {name}` has a flag of its own", f"use `{FLAG_OF_LORA_ARG[name]}`")
    targets = [
        name
        for name in resolve_target_modules(model, lora.target_modules)
        if not is_in_component(name, settings.freeze)
    ]
    if not targets:
        raise UserError("all `--target_modules` are in the half that is frozen", "leave `--freeze` out")
    whole: Any = model
    return add_lora(
        whole,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=targets,
        **given,
    )


def _resume_adapter(model: PeftModel) -> PeftModel:
    for config in model.peft_config.values():
        config.inference_mode = False
    for name, weight in model.named_parameters():
        learns = ".lora_" in name or ".modules_to_save." in name
        weight.requires_grad_(learns)
        if learns:
            weight.data = weight.data.float()
    return model
