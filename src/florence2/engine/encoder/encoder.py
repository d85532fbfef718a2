"""Pictures and prompts to encoder states, a few questions at a time.

The features of a picture are kept with its view, so that several questions about one picture look at it once. This is
where most of the time goes, so this is what is compiled. Knows nothing of slots.

Shapes: B questions of a micro-batch, N encoder positions, D model size; pixels are B x C x H x W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from florence2.cuda_graphs import CudaGraphCache
from florence2.devices import to_device
from florence2.engine.encoder.gram_channel_attention import restore_attention, use_gram_attention
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import ModelGenerationConfig
from florence2.engine.requests import ImageInputs, Request
from florence2.engine.stats import Timer
from florence2.model.processing import Preprocessor
from florence2.system import has_compiler, require_compiler

# Compiling takes about half a minute. On each picture of a base model it saves from .03 to .13 s on two CPU cores, and
# 1.2 ms on an H200.
MIN_IMAGES_TO_COMPILE = {"cpu": 1_000, "cuda": 30_000}
GPU_BATCH = 16


class Encoder:
    """The vision tower and the encoder of a `Florence2ForConditionalGeneration`."""

    def __init__(self, model: Any, preprocessor: Preprocessor, rules: ModelGenerationConfig, clock: Timer) -> None:
        self._model, self._preprocessor, self._rules, self._clock = model, preprocessor, rules, clock
        self.batch = 1 if model.device.type == "cpu" else GPU_BATCH  # batching gains nothing on a CPU
        self.vision = model.model.vision_tower.to(memory_format=torch.channels_last)
        self.is_compiled = False
        if model.dtype == torch.bfloat16:  # sums of squares are too large for float16
            use_gram_attention(self.vision)
        self._replay = CudaGraphCache(self._vision_step, enabled=model.device.type == "cuda")
        # Where the pictures of a micro-batch and their features lie: a recording knows places, not tensors.
        self._pixel_buffer_BHWC = torch.empty(0, dtype=torch.uint8, device=model.device)
        self._features_BND = torch.empty(0, dtype=model.dtype, device=model.device)

    def close(self) -> None:
        """Give the model its own ways back."""
        restore_attention(self._model.model.vision_tower)

    @torch.inference_mode()
    def prepare(self, settings: EngineConfig, expected: int) -> None:
        """Make room for a micro-batch; compile the vision tower where that was asked for, or where it pays."""
        places, width = self._preprocessor.num_image_tokens, self._model.config.text_config.d_model
        self._pixel_buffer_BHWC.resize_(self.batch, *self._preprocessor.size, 3)
        self._features_BND.resize_(self.batch, places, width)
        if self.is_compiled or not wants_compiler(settings.compile, expected, self._model.device.type):
            return
        # Freezing lets the compiler lay the weights out anew; shapes are fixed, for a micro-batch is always full.
        self.vision = torch.compile(self.vision, dynamic=False, options={"freezing": True})
        self.is_compiled = True

    def encode(self, questions: Sequence[Request]) -> Tensor:
        """Give the states of several questions, (B, N, D); shorter prompts are padded behind."""
        new = list(
            {id(q.image_inputs): q.image_inputs for q in questions if q.image_inputs.features_ND is None}.values()
        )
        if new:
            with self._clock.measure("vision"):
                self._encode_images(new)
        with self._clock.measure("encode"):
            return self._encode_text(questions)

    def _encode_images(self, views: Sequence[ImageInputs]) -> None:
        """Compute the features of pictures that were not seen yet."""
        count = self.batch if self.is_compiled else len(views)
        for levels_HWC, view in zip(self._pixel_buffer_BHWC, views, strict=False):
            levels_HWC.copy_(view.pixels_HWC, non_blocking=True)
        self._replay(count)
        for view, features_ND in zip(views, self._features_BND[: len(views)].clone(), strict=True):
            view.features_ND = features_ND

    def _vision_step(self, count: int) -> None:
        """Turn the first of the bytes that lie on the device into features."""
        model = self._model
        # Bytes travel to the device, numbers are made there; the layout stays channels-last.
        pixels_BCHW = self._preprocessor.normalize(self._pixel_buffer_BHWC[:count]).to(model.dtype)
        self._features_BND[:count] = model.model.multi_modal_projector(self.vision(pixels_BCHW).last_hidden_state)

    def _encode_text(self, questions: Sequence[Request]) -> Tensor:
        """Read pictures and prompts together."""
        model, places = self._model, self._preprocessor.num_image_tokens
        lengths = [len(question.prompt_ids) for question in questions]
        longest = max(lengths)
        ids = [q.prompt_ids[places:] + [self._rules.pad_token_id] * (longest - len(q.prompt_ids)) for q in questions]
        words_BND = model.get_input_embeddings()(to_device(torch.tensor(ids), model.device))
        seen = [question.image_inputs.features_ND for question in questions]
        seen_BND = torch.stack([features_ND for features_ND in seen if features_ND is not None])
        embeds_BND = torch.cat((seen_BND, words_BND), 1)
        mask_BN = None
        if min(lengths) < longest:
            ends = to_device(torch.tensor(lengths), model.device)
            mask_BN = (torch.arange(longest, device=model.device) < ends[:, None]).long()
        states: Tensor = model.get_encoder()(inputs_embeds=embeds_BND, attention_mask=mask_BN).last_hidden_state
        return states


def wants_compiler(asked: str, expected: int, device: str) -> bool:
    """Decide whether to compile; `auto` needs a compiler and pictures enough, `on` just the compiler."""
    if asked == "off" or (asked == "auto" and expected < MIN_IMAGES_TO_COMPILE.get(device, expected + 1)):
        return False
    if asked == "on":
        require_compiler("`compile=on`")
    return has_compiler()
