"""Tiny models prepared for training."""

from typing import Any

import torch

from florence2.config import LoraSettings
from florence2.training.prepare_model import LoraOptions, TrainableModel, parse_lora_args, prepare_model_for_training
from tests.tiny import tiny_model

NUM_IMAGE_TOKENS = 5


def lora_options(*words: str, **values: Any) -> LoraOptions | None:
    """Make LoRA options from the defaults, words of `--lora_args` and fields; None for rank 0."""
    default = LoraSettings()
    options = {name: getattr(default, name) for name in ("rank", "alpha", "dropout", "target_modules")} | values
    return LoraOptions(**options, args=parse_lora_args(words)) if options["rank"] else None


def trainable_model(*words: str, freeze: str = "none", model: Any = None, **lora: Any) -> TrainableModel:
    """Prepare a model, by default the tiny one, for training with the default LoRA, changed by words and fields."""
    return prepare_model_for_training(
        tiny_model()[0] if model is None else model,
        lora=lora_options(*words, **lora),
        freeze=freeze,
        dtype=torch.float32,
        num_image_tokens=NUM_IMAGE_TOKENS,
    )
