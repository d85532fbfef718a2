"""The KV cache of the decoder: keys and values of generated tokens and of the encoder's output, for every slot.

Heads come first and the positions of keys last, as batched matrix products read them.

Shapes: S slots, W rows of a slot, T tokens, N encoder positions, H heads, E head size, B slots that start.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from florence2.devices import is_out_of_memory
from florence2.engine.decoding.batch_state import BatchState, round_up_to_stride
from florence2.errors import DeviceMemoryError
from florence2.log import logger

if TYPE_CHECKING:
    from florence2.engine.decoding.decoder import Decoder

_HINT = "try a smaller `max_length`, fewer beams, `--dtype bfloat16`, or `--device cpu`"
ENCODER_POSITIONS = 600  # 577 of an image and some of a prompt; longer inputs grow the cache


class KVCache:
    """Keys and values layer by layer: for self-attention by row and token, for cross-attention by slot.

    `mask` hides the encoder positions behind a request's own; `encoder_length` counts the positions that are allocated.
    """

    def __init__(self, decoder: Decoder, slots: int, width: int, tokens: int) -> None:
        """Allocate the self-attention part; the cross-attention part is allocated with the first image."""
        heads, size = decoder.heads, decoder.head_size
        self._tensor_args = {"dtype": decoder.dtype, "device": decoder.device}
        layers = range(len(decoder.layers))
        self.keys_SHETW = [torch.zeros(slots, heads, size, tokens, width, **self._tensor_args) for _ in layers]
        self.values_SHTWE = [torch.zeros(slots, heads, tokens, width, size, **self._tensor_args) for _ in layers]
        self.cross_keys_SHEN = [torch.zeros(slots, heads, size, 0, **self._tensor_args) for _ in layers]
        self.cross_values_SHNE = [torch.zeros(slots, heads, 0, size, **self._tensor_args) for _ in layers]
        self.mask_S1N = torch.zeros(slots, 1, 0, **self._tensor_args)
        self.encoder_length = 0
        # Finite, so that a slot that never held a request computes no NaN.
        self._masked = torch.finfo(decoder.dtype).min

    def grow(self, positions: int) -> None:
        """Allocate room for this many encoder positions."""
        if positions <= self.encoder_length:
            return
        self.encoder_length = round_up_to_stride(positions)
        self.cross_keys_SHEN = [self._widened(keys, 3) for keys in self.cross_keys_SHEN]
        self.cross_values_SHNE = [self._widened(values, 2) for values in self.cross_values_SHNE]
        self.mask_S1N = self._widened(self.mask_S1N, 2, self._masked)

    def free(self) -> None:
        """Free the memory; the cache cannot be used any more."""
        self.keys_SHETW, self.values_SHTWE, self.cross_keys_SHEN, self.cross_values_SHNE = [], [], [], []

    def set_mask(self, slot_B: Tensor, length_B: Tensor) -> None:
        """Let each slot attend to its first encoder positions."""
        is_hidden_BN = torch.arange(self.encoder_length, device=length_B.device) >= length_B[:, None]
        mask_BN = self.mask_S1N.new_zeros(is_hidden_BN.shape).masked_fill(is_hidden_BN, self._masked)
        self.mask_S1N.index_copy_(0, slot_B, mask_BN.unsqueeze(1))

    def move_slot(self, source: int, target: int) -> None:
        """Copy a slot to another one."""
        own, cross = self.keys_SHETW + self.values_SHTWE, self.cross_keys_SHEN + self.cross_values_SHNE
        for tensor in (*own, *cross, self.mask_S1N):
            tensor[target] = tensor[source]

    def _widened(self, tensor: Tensor, dim: int, fill: float = 0.0) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = self.encoder_length
        widened = torch.full(shape, fill, **self._tensor_args)
        widened.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
        return widened


def max_slots_for_memory(model: Any, width: int, tokens: int, most: int) -> int:
    """Count the slots that fit a quarter of the machine's memory, or half of a GPU's free memory; `most` at most."""
    decoder, weight = model.config.text_config, model.lm_head.weight
    positions = tokens * width + round_up_to_stride(ENCODER_POSITIONS)
    slot_bytes = 2 * decoder.decoder_layers * decoder.d_model * positions * weight.element_size()
    if weight.is_cuda:
        memory = torch.cuda.mem_get_info(weight.device)[0] // 2
    elif hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    else:
        memory = most * slot_bytes
    return max(1, min(most, int(memory // slot_bytes)))


def allocate_slots(decoder: Decoder, slots: int, width: int, tokens: int) -> tuple[int, KVCache, BatchState]:
    """Allocate the cache and the batch state of slots, and return their number, which may be smaller."""
    while True:
        try:
            return slots, KVCache(decoder, slots, width, tokens), BatchState.empty(slots, width, tokens, decoder.device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        slots = halve_slots(slots)  # outside of the handler, whose error refers to tensors


def halve_slots(slots: int) -> int:
    """Return half as many slots, and log it; raise a DeviceMemoryError where there is but one."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if slots == 1:
        raise DeviceMemoryError("the device has no memory for one request", _HINT)
    logger.warning(f"the device has no memory for {slots} requests at a time; the engine goes on with {slots // 2}")
    return slots // 2
