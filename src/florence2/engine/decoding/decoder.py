"""The decoder, one token at a time for all slots, against caches that never move.

Keys and values of what was said stay in the row where they were computed; the slots' `origin` table says whose past a
row looks at. Keys and values of the picture are computed once for all rows of a slot. All lie heads first, and keys
with their places last, as the batched products want them. Knows nothing of how tokens are chosen.

Shapes: S slots, W rows of a slot, T tokens, N encoder positions, H heads, E head size, D model size, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.devices import to_device
from florence2.engine.decoding.batch_state import BatchState, round_up_to_stride

Weights = tuple[Tensor, Tensor]
TOP_LOGITS_FP32 = 64  # logits of a row that are computed exactly where the rest is rough
ENCODER_POSITIONS = 600  # 577 for the picture and some for a prompt; more are made room for when they come


class KVCache:
    """Keys and values of every slot, layer by layer.

    `mask` keeps out what lies behind a question's own positions; `reach` is how many of them count for any slot.
    """

    def __init__(self, decoder: Decoder, slots: int, width: int, tokens: int) -> None:
        """Set the memory for words aside; that for pictures comes with the first picture."""
        heads, size = decoder.heads, decoder.head_size
        self._new = {"dtype": decoder.dtype, "device": decoder.device}
        layers = range(len(decoder.layers))
        self.keys_SHETW = [torch.zeros(slots, heads, size, tokens, width, **self._new) for _ in layers]
        self.values_SHTWE = [torch.zeros(slots, heads, tokens, width, size, **self._new) for _ in layers]
        self.image_keys_SHEN = [torch.zeros(slots, heads, size, 0, **self._new) for _ in layers]
        self.image_values_SHNE = [torch.zeros(slots, heads, 0, size, **self._new) for _ in layers]
        self.mask_S1N = torch.zeros(slots, 1, 0, **self._new)
        self.attended_length = 0
        # Finite, so that a slot which was never taken computes no NaN.
        self._never = torch.finfo(decoder.dtype).min

    def grow(self, positions: int) -> None:
        """Make room for questions of so many positions."""
        if positions <= self.attended_length:
            return
        self.attended_length = round_up_to_stride(positions)
        self.image_keys_SHEN = [self._wider(whole, 3) for whole in self.image_keys_SHEN]
        self.image_values_SHNE = [self._wider(whole, 2) for whole in self.image_values_SHNE]
        self.mask_S1N = self._wider(self.mask_S1N, 2, self._never)

    def set_mask(self, slot_B: Tensor, length_B: Tensor) -> None:
        """Let each slot look at so many positions."""
        is_hidden_BN = torch.arange(self.attended_length, device=length_B.device) >= length_B[:, None]
        mask_BN = self.mask_S1N.new_zeros(is_hidden_BN.shape).masked_fill(is_hidden_BN, self._never)
        self.mask_S1N.index_copy_(0, slot_B, mask_BN.unsqueeze(1))

    def move_slot(self, source: int, target: int) -> None:
        """Let one slot take over from another."""
        words, images = self.keys_SHETW + self.values_SHTWE, self.image_keys_SHEN + self.image_values_SHNE
        for whole in (*words, *images, self.mask_S1N):
            whole[target] = whole[source]

    def _wider(self, whole: Tensor, dim: int, fill: float = 0.0) -> Tensor:
        shape = list(whole.shape)
        shape[dim] = self.attended_length
        wider = torch.full(shape, fill, **self._new)
        wider.narrow(dim, 0, whole.shape[dim]).copy_(whole)
        return wider


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """The weights of one decoder layer, as (weight, bias); query, key and value of self-attention in one."""

    qkv: Weights
    out: Weights
    norm: Any
    cross_query: Weights
    cross_out: Weights
    cross_norm: Any
    fc1: Weights
    fc2: Weights
    final_norm: Any

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Take the weights of transformers' layer; only query, key and value are copied."""
        own, cross = layer.self_attn, layer.encoder_attn
        return cls(
            qkv=_joined([own.q_proj, own.k_proj, own.v_proj]),
            out=_weights(own.out_proj),
            norm=layer.self_attn_layer_norm,
            cross_query=_weights(cross.q_proj),
            cross_out=_weights(cross.out_proj),
            cross_norm=layer.encoder_attn_layer_norm,
            fc1=_weights(layer.fc1),
            fc2=_weights(layer.fc2),
            final_norm=layer.final_layer_norm,
        )


class Decoder:
    """The decoder of a `Florence2ForConditionalGeneration`, made for one-token steps."""

    def __init__(self, model: Any) -> None:
        decoder = model.model.language_model.decoder
        attention = decoder.layers[0].self_attn
        self.heads, self.head_size, self._scale = attention.num_heads, attention.head_dim, attention.scaling
        self.dtype, self.device = model.lm_head.weight.dtype, model.lm_head.weight.device
        self.layers = [DecoderLayer.of(layer) for layer in decoder.layers]
        self._activation = decoder.layers[0].activation_fn
        self._words, self._norm = decoder.embed_tokens, decoder.layernorm_embedding
        self._places = decoder.embed_positions.weight[decoder.embed_positions.offset :]
        self._image = _joined([p for layer in decoder.layers for p in _cross_projections(layer)])
        self._head = model.lm_head.weight

    def prefill_cross_attention(
        self, cache: KVCache, slots: Sequence[int], states_BND: Tensor, lengths: Sequence[int]
    ) -> None:
        """Put what the encoder saw into slots: states of B questions, of which `lengths` positions count."""
        batch, positions, _ = states_BND.shape
        cache.grow(positions)
        slot_B, length_B = to_device(torch.tensor([slots, lengths]), self.device)
        both = F.linear(states_BND, *self._image)
        both_LKBHNE = both.view(batch, positions, len(self.layers), 2, self.heads, -1).permute(2, 3, 0, 4, 1, 5)
        for layer, (keys_BHNE, values_BHNE) in enumerate(both_LKBHNE):
            cache.image_keys_SHEN[layer][..., :positions].index_copy_(0, slot_B, keys_BHNE.mT)
            cache.image_values_SHNE[layer][:, :, :positions].index_copy_(0, slot_B, values_BHNE)
        cache.set_mask(slot_B, length_B)

    def step(self, cache: KVCache, slots: BatchState) -> Tensor:
        """Read each row's last token and give the logits of its next, (S, W, V) in float32."""
        place_S = slots.last_positions()
        last_SW = slots.tokens_SWT.gather(2, place_S.view(-1, 1, 1).expand(*slots.scores_SW.shape, 1)).squeeze(-1)
        hidden_SWD = self._norm(self._words(last_SW) + self._places[place_S].unsqueeze(1))
        mask_SWK = self._self_attention_mask(slots, place_S)
        for number, layer in enumerate(self.layers):
            hidden_SWD = layer.norm(hidden_SWD + self._self_attention(cache, number, place_S, mask_SWK, hidden_SWD))
            hidden_SWD = layer.cross_norm(hidden_SWD + self._cross_attention(cache, number, hidden_SWD))
            widened = self._activation(F.linear(hidden_SWD, *layer.fc1))
            hidden_SWD = layer.final_norm(hidden_SWD + F.linear(widened, *layer.fc2))
        return self.logits(hidden_SWD)

    def logits(self, hidden_SWD: Tensor) -> Tensor:
        """Give logits in float32 whatever the model's type: around 20, bfloat16 tells no two apart within 0.06."""
        if self.dtype == torch.float32:
            return F.linear(hidden_SWD, self._head)
        if self.device.type == "cuda" and torch.version.hip is None:
            flat: Tensor = torch.mm(hidden_SWD.flatten(0, 1), self._head.T, out_dtype=torch.float32)
            return flat.view(*hidden_SWD.shape[:2], -1)
        return self._recompute_top_logits(hidden_SWD, F.linear(hidden_SWD, self._head).float())

    def _recompute_top_logits(self, hidden_SWD: Tensor, logits_SWV: Tensor) -> Tensor:
        """Compute the largest logits, of which one will be said, once more in float32; a CPU gives halves of halves."""
        best_SWC = logits_SWV.topk(min(TOP_LOGITS_FP32, logits_SWV.shape[-1]), sorted=False).indices
        weights_SWCD = F.embedding(best_SWC, self._head).float()
        exact_SWC1 = weights_SWCD @ hidden_SWD.float().unsqueeze(-1)
        return logits_SWV.scatter_(-1, best_SWC, exact_SWC1.squeeze(-1))

    def _self_attention_mask(self, slots: BatchState, place_S: Tensor) -> Tensor:
        """Say which cached tokens each row may look at: 0 or -inf, (S, W, T x W), tokens outside."""
        width, tokens = slots.cache_row_SWT.shape[1:]
        rows_W = torch.arange(width, device=self.device)
        is_said_S1T1 = (torch.arange(tokens, device=self.device) <= place_S[:, None])[:, None, :, None]
        is_own_SWTV = (slots.cache_row_SWT.unsqueeze(-1) == rows_W) & is_said_S1T1
        mask = torch.zeros((), dtype=self.dtype, device=self.device).masked_fill(~is_own_SWTV, -float("inf"))
        return mask.flatten(2)

    def _self_attention(
        self, cache: KVCache, number: int, place_S: Tensor, mask_SWK: Tensor, hidden_SWD: Tensor
    ) -> Tensor:
        """Attend to what was said, after adding the last token to it."""
        slots, width, _ = hidden_SWD.shape
        tokens = mask_SWK.shape[-1] // width
        layer, keys, values = self.layers[number], cache.keys_SHETW[number], cache.values_SHTWE[number]
        qkv = F.linear(hidden_SWD, *layer.qkv).view(slots, width, 3, self.heads, self.head_size)
        query_SHWE, key_SHWE, value_SHWE = qkv.permute(2, 0, 3, 1, 4)
        every_S = torch.arange(slots, device=self.device)
        keys[every_S, :, :, place_S] = key_SHWE.mT
        values[every_S, :, place_S] = value_SHWE
        past = keys[:slots, ..., :tokens, :].flatten(3), values[:slots, :, :tokens].flatten(2, 3)
        return self._attend(query_SHWE, past, mask_SWK, layer.out)

    def _cross_attention(self, cache: KVCache, number: int, hidden_SWD: Tensor) -> Tensor:
        """Attend to the picture and the prompt."""
        slots, width, _ = hidden_SWD.shape
        layer = self.layers[number]
        query_SWHE = F.linear(hidden_SWD, *layer.cross_query).view(slots, width, self.heads, self.head_size)
        image = cache.image_keys_SHEN[number][:slots], cache.image_values_SHNE[number][:slots]
        return self._attend(query_SWHE.transpose(1, 2), image, cache.mask_S1N[:slots], layer.cross_out)

    def _attend(self, query_SHWE: Tensor, known: tuple[Tensor, Tensor], mask: Tensor, out: Weights) -> Tensor:
        """Weigh the values of what is known by how well its keys answer; the rows of a slot share one product."""
        keys_SHEN, values_SHNE = known
        scores_SHWN = (query_SHWE * self._scale) @ keys_SHEN + mask.unsqueeze(1)
        seen_SHWE = scores_SHWN.softmax(-1) @ values_SHNE
        return F.linear(seen_SHWE.transpose(1, 2).flatten(2), *out)


def max_slots_for_memory(model: Any, width: int, tokens: int, most: int) -> int:
    """Count the slots that a quarter of the machine's memory holds, or half of what a GPU has free; `most` at most."""
    decoder, weight = model.config.text_config, model.lm_head.weight
    positions = tokens * width + round_up_to_stride(ENCODER_POSITIONS)
    slot = 2 * decoder.decoder_layers * decoder.d_model * positions * weight.element_size()
    if weight.is_cuda:
        memory = torch.cuda.mem_get_info(weight.device)[0] // 2
    else:
        memory = (
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 if hasattr(os, "sysconf") else most * slot
        )
    return max(1, min(most, int(memory // slot)))


def _weights(linear: Any) -> Weights:
    return linear.weight.detach(), linear.bias.detach()


def _joined(linears: Sequence[Any]) -> Weights:
    weights, biases = zip(*map(_weights, linears), strict=True)
    return torch.cat(weights), torch.cat(biases)


def _cross_projections(layer: Any) -> tuple[Any, Any]:
    return layer.encoder_attn.k_proj, layer.encoder_attn.v_proj
