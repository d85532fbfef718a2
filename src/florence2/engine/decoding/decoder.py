"""The decoder, one token at a time for all slots, against a KV cache whose entries never move.

Keys and values of a token stay in the row that computed them; `BatchState.cache_row` tells whose tokens a row attends
to. Keys and values of the encoder's output are computed once for all rows of a slot.

Shapes: S slots, W rows of a slot, T tokens, N encoder positions, H heads, E head size, D model size, V vocabulary,
C candidates of a row, B slots that start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.devices import INT8, to_device
from florence2.engine.decoding.batch_state import BatchState
from florence2.engine.decoding.kv_cache import KVCache
from florence2.engine.quantization.int8_linear import Int8Weight

Weights = tuple[Tensor, Tensor]
Projection = Callable[[Tensor], Tensor]
TOP_LOGITS_FP32 = 64  # logits of a row that are computed in float32 where the matrix product is rounded


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """The linear layers and norms of one decoder layer; query, key and value of self-attention are one."""

    qkv: Projection
    out: Projection
    norm: Any
    cross_query: Projection
    cross_out: Projection
    cross_norm: Any
    fc1: Projection
    fc2: Projection
    final_norm: Any

    @classmethod
    def from_layer(cls, layer: Any, project: Callable[[Tensor, Tensor | None], Projection]) -> Self:
        """Take the weights of transformers' layer; in their own dtype only query, key and value are copied."""
        own, cross = layer.self_attn, layer.encoder_attn
        return cls(
            qkv=project(*_concatenated([own.q_proj, own.k_proj, own.v_proj])),
            out=project(*_weights(own.out_proj)),
            norm=layer.self_attn_layer_norm,
            cross_query=project(*_weights(cross.q_proj)),
            cross_out=project(*_weights(cross.out_proj)),
            cross_norm=layer.encoder_attn_layer_norm,
            fc1=project(*_weights(layer.fc1)),
            fc2=project(*_weights(layer.fc2)),
            final_norm=layer.final_layer_norm,
        )


class Decoder:
    """The decoder of a `Florence2ForConditionalGeneration` for steps of one token."""

    def __init__(self, model: Any) -> None:
        decoder = model.model.language_model.decoder
        attention = decoder.layers[0].self_attn
        self.heads, self.head_size, self._scale = attention.num_heads, attention.head_dim, attention.scaling
        self.dtype, self.device = model.lm_head.weight.dtype, model.lm_head.weight.device
        project = _int8_projection if getattr(model, "precision", None) == INT8 else _projection
        self.layers = [DecoderLayer.from_layer(layer, project) for layer in decoder.layers]
        self._activation = decoder.layers[0].activation_fn
        self._embed_tokens, self._norm = decoder.embed_tokens, decoder.layernorm_embedding
        self._embed_positions = decoder.embed_positions.weight[decoder.embed_positions.offset :]
        cross = _concatenated([p for layer in decoder.layers for p in _cross_projections(layer)])
        self._cross_projections = project(*cross)
        self._lm_head = model.lm_head.weight
        self._project_to_logits = project(self._lm_head, None)
        self._has_exact_logits = self.dtype == torch.float32 and project is _projection

    def prefill_cross_attention(
        self, cache: KVCache, slots: Sequence[int], states_BND: Tensor, lengths: Sequence[int]
    ) -> None:
        """Write the encoder's output into the cache of these slots; the first `lengths` positions count."""
        batch, positions, _ = states_BND.shape
        cache.grow(positions)
        slot_B, length_B = to_device(torch.tensor([slots, lengths]), self.device)
        projected = self._cross_projections(states_BND)
        projected_LKBHNE = projected.view(batch, positions, len(self.layers), 2, self.heads, -1).permute(
            2, 3, 0, 4, 1, 5
        )
        for layer, (keys_BHNE, values_BHNE) in enumerate(projected_LKBHNE):
            cache.cross_keys_SHEN[layer][..., :positions].index_copy_(0, slot_B, keys_BHNE.mT)
            cache.cross_values_SHNE[layer][:, :, :positions].index_copy_(0, slot_B, values_BHNE)
        cache.set_mask(slot_B, length_B)

    def step(self, cache: KVCache, batch: BatchState) -> Tensor:
        """Decode each row's last token into the logits of its next one, (S, W, V) in float32."""
        position_S = batch.last_positions()
        last_SW = batch.tokens_SWT.gather(2, position_S.view(-1, 1, 1).expand(*batch.scores_SW.shape, 1)).squeeze(-1)
        hidden_SWD = self._norm(self._embed_tokens(last_SW) + self._embed_positions[position_S].unsqueeze(1))
        mask_SWK = self._self_attention_mask(batch, position_S)
        for number, layer in enumerate(self.layers):
            hidden_SWD = layer.norm(hidden_SWD + self._self_attention(cache, number, position_S, mask_SWK, hidden_SWD))
            hidden_SWD = layer.cross_norm(hidden_SWD + self._cross_attention(cache, number, hidden_SWD))
            widened = self._activation(layer.fc1(hidden_SWD))
            hidden_SWD = layer.final_norm(hidden_SWD + layer.fc2(widened))
        return self.logits(hidden_SWD)

    def logits(self, hidden_SWD: Tensor) -> Tensor:
        """Compute logits in float32 for every dtype: bfloat16 cannot tell logits around 20 apart within 0.06."""
        if self._has_exact_logits:
            return self._project_to_logits(hidden_SWD)
        if self.device.type == "cuda" and torch.version.hip is None:
            flat: Tensor = torch.mm(hidden_SWD.flatten(0, 1), self._lm_head.T, out_dtype=torch.float32)
            return flat.view(*hidden_SWD.shape[:2], -1)
        return self._recompute_top_logits(hidden_SWD, self._project_to_logits(hidden_SWD).float())

    def _recompute_top_logits(self, hidden_SWD: Tensor, logits_SWV: Tensor) -> Tensor:
        """Compute the largest logits once more in float32; a CPU rounds products of bfloat16 to bfloat16."""
        best_SWC = logits_SWV.topk(min(TOP_LOGITS_FP32, logits_SWV.shape[-1]), sorted=False).indices
        weights_SWCD = F.embedding(best_SWC, self._lm_head).float()
        exact_SWC1 = weights_SWCD @ hidden_SWD.float().unsqueeze(-1)
        return logits_SWV.scatter_(-1, best_SWC, exact_SWC1.squeeze(-1))

    def _self_attention_mask(self, batch: BatchState, position_S: Tensor) -> Tensor:
        """Compute which cached tokens each row attends to: 0 or -inf, (S, W, T x W), tokens outermost."""
        width, tokens = batch.cache_row_SWT.shape[1:]
        rows_W = torch.arange(width, device=self.device)
        is_past_S1T1 = (torch.arange(tokens, device=self.device) <= position_S[:, None])[:, None, :, None]
        is_own_SWTV = (batch.cache_row_SWT.unsqueeze(-1) == rows_W) & is_past_S1T1
        mask = torch.zeros((), dtype=self.dtype, device=self.device).masked_fill(~is_own_SWTV, -float("inf"))
        return mask.flatten(2)

    def _self_attention(
        self, cache: KVCache, number: int, position_S: Tensor, mask_SWK: Tensor, hidden_SWD: Tensor
    ) -> Tensor:
        """Add the last token to the cache, and attend to the generated tokens."""
        slots, width, _ = hidden_SWD.shape
        tokens = mask_SWK.shape[-1] // width
        layer, keys, values = self.layers[number], cache.keys_SHETW[number], cache.values_SHTWE[number]
        qkv = layer.qkv(hidden_SWD).view(slots, width, 3, self.heads, self.head_size)
        query_SHWE, key_SHWE, value_SHWE = qkv.permute(2, 0, 3, 1, 4)
        every_S = torch.arange(slots, device=self.device)
        keys[every_S, :, :, position_S] = key_SHWE.mT
        values[every_S, :, position_S] = value_SHWE
        past = keys[:slots, ..., :tokens, :].flatten(3), values[:slots, :, :tokens].flatten(2, 3)
        return self._attend(query_SHWE, past, mask_SWK, layer.out)

    def _cross_attention(self, cache: KVCache, number: int, hidden_SWD: Tensor) -> Tensor:
        """Attend to the image and the prompt."""
        slots, width, _ = hidden_SWD.shape
        layer = self.layers[number]
        query_SWHE = layer.cross_query(hidden_SWD).view(slots, width, self.heads, self.head_size)
        encoded = cache.cross_keys_SHEN[number][:slots], cache.cross_values_SHNE[number][:slots]
        return self._attend(query_SWHE.transpose(1, 2), encoded, cache.mask_S1N[:slots], layer.cross_out)

    def _attend(self, query_SHWE: Tensor, key_value: tuple[Tensor, Tensor], mask: Tensor, out: Projection) -> Tensor:
        """Compute attention; the rows of a slot are one matrix product."""
        keys_SHEN, values_SHNE = key_value
        scores_SHWN = (query_SHWE * self._scale) @ keys_SHEN + mask.unsqueeze(1)
        context_SHWE = scores_SHWN.softmax(-1) @ values_SHNE
        return out(context_SHWE.transpose(1, 2).flatten(2))


def _weights(linear: Any) -> Weights:
    return linear.weight.detach(), linear.bias.detach()


def _projection(weight: Tensor, bias: Tensor | None) -> Projection:
    return partial(F.linear, weight=weight, bias=bias)


def _int8_projection(weight: Tensor, bias: Tensor | None) -> Projection:
    return Int8Weight(weight, bias).multiply_rows


def _concatenated(linears: Sequence[Any]) -> Weights:
    weights, biases = zip(*map(_weights, linears), strict=True)
    return torch.cat(weights), torch.cat(biases)


def _cross_projections(layer: Any) -> tuple[Any, Any]:
    return layer.encoder_attn.k_proj, layer.encoder_attn.v_proj
