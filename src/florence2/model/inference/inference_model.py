"""The model of prediction, with the attributes of `Florence2ForConditionalGeneration` that the engine reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from florence2.model.inference.architecture import Architecture
from florence2.model.inference.language_model import LanguageModel
from florence2.model.inference.layers import LoadedLinear
from florence2.model.inference.vision_tower import Projector, VisionTower
from florence2.model.storage.score_calibration import ScoreCalibration

# What transformers' generation config has where a checkpoint says nothing.
_GENERATION_DEFAULTS: dict[str, Any] = dict.fromkeys(
    (
        *("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
        *("forced_bos_token_id", "forced_eos_token_id", "no_repeat_ngram_size"),
    )
)


class ModelParts(nn.Module):
    """Vision tower, projector and language model."""

    def __init__(self, sizes: Architecture, vocab_size: int) -> None:
        super().__init__()
        self.vision_tower = VisionTower(sizes.vision_config)
        self.multi_modal_projector = Projector(sizes.vision_config)
        self.language_model = LanguageModel(sizes.text_config, vocab_size)


class InferenceModel(nn.Module):
    """Florence-2 for the engine: it cannot train, and has no `forward` or `generate` of its own."""

    def __init__(self, sizes: Architecture, vocab_size: int, *, is_tied: bool) -> None:
        super().__init__()
        self.config = sizes
        self.model = ModelParts(sizes, vocab_size)
        self.lm_head = LoadedLinear(sizes.text_config.d_model, vocab_size, bias=False)
        if is_tied:
            self.lm_head.weight = self.model.language_model.shared.weight
        self.generation_config = SimpleNamespace(**_GENERATION_DEFAULTS)
        self.score_calibration: ScoreCalibration | None = None

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""
        return self.lm_head.weight.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embedding."""
        return self.model.language_model.shared

    def get_encoder(self) -> nn.Module:
        """Return the text encoder."""
        return self.model.language_model.encoder

    def set_generation_config(self, settings: dict[str, Any]) -> None:
        """Set the generation config of the checkpoint."""
        self.generation_config = SimpleNamespace(**_GENERATION_DEFAULTS | settings)
