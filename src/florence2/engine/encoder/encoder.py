"""The encoder: images and prompts become encoder states, a few requests at a time.

The features of an image are stored in its `ImageInputs`, so that several requests with one image compute them once.
Most of the time is spent here, and so this is the part that is compiled.

Shapes: B requests of a micro-batch, N encoder positions, D model size; pixels are B x C x H x W.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from florence2.cuda_graphs import CudaGraphCache
from florence2.devices import INT8, has_slow_fused_attention, to_device
from florence2.engine.encoder.attention_patch import AttentionPatch, restore_attention, use_patch
from florence2.engine.encoder.compile_main import compile_tower
from florence2.engine.encoder.compile_process import CompileProcess
from florence2.engine.encoder.gram_channel_attention import GramChannelAttention
from florence2.engine.encoder.window_attention import WindowProducts
from florence2.engine.generation_config import ModelGenerationConfig
from florence2.engine.requests import Request
from florence2.engine.stats import Timer
from florence2.engine.workers.image_loader import ImageInputs
from florence2.errors import OptionError
from florence2.log import logger
from florence2.model.processing import Preprocessor
from florence2.system import has_compiler, require_compiler

# Compiling takes half a minute or more of another process, then the engine traces for seconds. It saves 1.2 ms an image
# of a base model on an H200, and 2 to 10% of the tower's time on a CPU, where only `on` compiles.
MIN_IMAGES_TO_COMPILE = {"cuda": 30_000}
GPU_BATCH = 16


class Encoder:
    """The vision tower and the text encoder of a `Florence2ForConditionalGeneration`."""

    def __init__(
        self, model: Any, preprocessor: Preprocessor, model_config: ModelGenerationConfig, timer: Timer
    ) -> None:
        self._model, self._preprocessor, self._model_config, self._timer = model, preprocessor, model_config, timer
        self.batch_size = 1 if model.device.type == "cpu" else GPU_BATCH  # a CPU gains nothing by batching
        self.vision = model.model.vision_tower.to(memory_format=torch.channels_last)
        self.is_compiled = self._has_failed_to_compile = False
        self._compile_process: CompileProcess | None = None
        self._run_vision = CudaGraphCache(self._vision_step, enabled=model.device.type == "cuda")
        # The pixels of a micro-batch and their features: a CUDA graph reads and writes fixed addresses.
        self._pixel_buffer_BHWC = torch.empty(0, dtype=torch.uint8, device=model.device)
        self._features_BND = torch.empty(0, dtype=model.dtype, device=model.device)
        self._is_int8 = getattr(model, "precision", None) == INT8
        self._patches = attention_patches(model.dtype, model.device, is_int8=self._is_int8)
        for patch in self._patches:
            use_patch(self.vision, patch)

    @property
    def is_compiling(self) -> bool:
        """Return whether another process compiles the tower, which runs uncompiled meanwhile."""
        return self._compile_process is not None

    def close(self) -> None:
        """Stop compiling, and restore the attention of the tower, unless another encoder uses its patches."""
        self._stop_compiling()
        for patch in self._patches:
            restore_attention(self._model.model.vision_tower, patch)

    def halve_batch(self, most: int) -> None:
        """Encode half as many requests at a time, and at most as many as there are slots; free the graphs."""
        self.batch_size = max(1, min(self.batch_size // 2, most))
        self._run_vision.reset()
        if self.is_compiled or self.is_compiling:  # for the former size
            self._stop_compiling()
            self.vision, self.is_compiled = getattr(self.vision, "_orig_mod", self.vision), False
            self._start_compiling()

    @torch.inference_mode()
    def prepare(self, compile_mode: str, expected: int) -> None:
        """Allocate the buffers of a micro-batch, and start to compile the tower if `should_compile` says so."""
        features, width = self._preprocessor.num_image_tokens, self._model.config.text_config.d_model
        self._pixel_buffer_BHWC.resize_(self.batch_size, *self._preprocessor.size, 3)
        self._features_BND.resize_(self.batch_size, features, width)
        if self._is_int8 and compile_mode == "on":
            raise OptionError("`compile=on` does not go with int8, whose layers are compiled already", "remove one")
        is_due = should_compile(compile_mode, expected, self._model.device.type) and not self._is_int8
        if is_due and not (self.is_compiled or self.is_compiling or self._has_failed_to_compile):
            self._start_compiling()

    @torch.inference_mode()
    def wait_until_compiled(self, compile_mode: str) -> None:
        """Compile the tower before the first image, where the mode says so: measurements begin with it."""
        self.prepare(compile_mode, 0)
        if self._compile_process is not None:
            self._compile_process.wait()
            self._use_compiled_tower()

    def encode(self, requests: Sequence[Request]) -> Tensor:
        """Return the encoder states of several requests, (B, N, D); shorter prompts are padded on the right."""
        images = [request.image_inputs for request in requests]
        new = list({id(image): image for image in images if image.features_ND is None}.values())
        if new:
            with self._timer.measure("vision"):
                self._encode_images(new)
        with self._timer.measure("encode"):
            return self._encode_text(requests)

    def _encode_images(self, images: Sequence[ImageInputs]) -> None:
        """Compute the features of images that have none."""
        self._use_compiled_tower()
        count = self.batch_size if self.is_compiled else len(images)
        for buffer_HWC, image in zip(self._pixel_buffer_BHWC, images, strict=False):
            buffer_HWC.copy_(image.pixels_HWC, non_blocking=True)
        self._run_vision(count)
        for image, features_ND in zip(images, self._features_BND[: len(images)].clone(), strict=True):
            image.features_ND = features_ND

    def _vision_step(self, count: int) -> None:
        """Compute the features of the first images of the pixel buffer."""
        states_BND = self.vision(self._pixels(count)).last_hidden_state
        self._features_BND[:count] = self._model.model.multi_modal_projector(states_BND)

    def _pixels(self, count: int) -> Tensor:
        """Normalize the first images of the pixel buffer on the device; the layout stays channels-last."""
        return self._preprocessor.normalize(self._pixel_buffer_BHWC[:count]).to(self._model.dtype)

    def _encode_text(self, requests: Sequence[Request]) -> Tensor:
        """Encode image features and prompts together."""
        model, num_features = self._model, self._preprocessor.num_image_tokens
        lengths = [len(request.prompt_ids) for request in requests]
        longest, pad = max(lengths), self._model_config.pad_token_id
        ids = [request.prompt_ids[num_features:] + [pad] * (longest - len(request.prompt_ids)) for request in requests]
        prompts_BND = model.get_input_embeddings()(to_device(torch.tensor(ids), model.device))
        features = [request.image_inputs.features_ND for request in requests]
        features_BND = torch.stack([features_ND for features_ND in features if features_ND is not None])
        embeds_BND = torch.cat((features_BND, prompts_BND), 1)
        mask_BN = None
        if min(lengths) < longest:
            length_B = to_device(torch.tensor(lengths), model.device)
            mask_BN = (torch.arange(longest, device=model.device) < length_B[:, None]).long()
        states: Tensor = model.get_encoder()(inputs_embeds=embeds_BND, attention_mask=mask_BN).last_hidden_state
        return states

    def _start_compiling(self) -> None:
        try:
            self._compile_process = CompileProcess(self.vision, self._pixels(self.batch_size))
        except Exception as error:  # a model of somebody else may refuse to be pickled in any way
            self._give_up_compiling(str(error))
        else:
            logger.info("compiling the vision tower in the background: until then images pass it uncompiled")

    def _use_compiled_tower(self) -> None:
        """Compile the tower from the cache, once the other process has filled it; a failure leaves it uncompiled."""
        process = self._compile_process
        if process is None or (has_succeeded := process.poll()) is None:
            return
        background, reason = process.seconds, process.reason
        self._stop_compiling()
        if not has_succeeded:
            self._give_up_compiling(reason)
            return
        compiled, start = compile_tower(self.vision), time.monotonic()
        try:
            compiled(self._pixels(self.batch_size))
        except Exception as error:  # compilers raise exceptions of any type
            self._give_up_compiling(f"{type(error).__name__}: {' '.join(str(error).split())}")
            return
        self.vision, self.is_compiled = compiled, True
        self._run_vision.reset()
        own = time.monotonic() - start
        logger.info(f"the vision tower is compiled, in {background:.0f} s beside this process and {own:.0f} s of it")

    def _give_up_compiling(self, reason: str) -> None:
        self._has_failed_to_compile = True
        logger.warning(f"the vision tower cannot be compiled, and stays as it is: {reason}")

    def _stop_compiling(self) -> None:
        if self._compile_process is not None:
            self._compile_process.close()
            self._compile_process = None


def attention_patches(dtype: torch.dtype, device: torch.device, *, is_int8: bool) -> list[type[AttentionPatch]]:
    """Return what an engine patches the vision tower with; float32 keeps transformers' own order of operations."""
    if dtype != torch.bfloat16 and not is_int8:  # sums of squares are too large for float16
        return []
    has_products = has_slow_fused_attention(device, dtype) and not is_int8  # int8 has window attention of its own
    return [GramChannelAttention, WindowProducts] if has_products else [GramChannelAttention]


def should_compile(mode: str, expected: int, device: str) -> bool:
    """Decide whether to compile: `auto` needs a GPU, a compiler and enough images, `on` only the compiler."""
    if mode == "off" or (mode == "auto" and expected < MIN_IMAGES_TO_COMPILE.get(device, expected + 1)):
        return False
    if mode == "on":
        require_compiler("`compile=on`")
    return has_compiler()
