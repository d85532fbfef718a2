"""BART for prediction: the encoder runs here, the decoder is a container of weights for the engine's own steps.

Module names, order of operations and results are those of transformers' classes.

Shapes: B requests, N encoder positions, D model size, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.model.inference.architecture import TextArchitecture
from florence2.model.inference.layers import LoadedEmbedding, LoadedLinear, LoadedNorm
from florence2.model.inference.vision_tower import HiddenStates

FLOAT16_MARGIN = 1000  # below the largest number of float16


class ScaledEmbedding(LoadedEmbedding):
    """Token embeddings times a factor."""

    def __init__(self, num_embeddings: int, dim: int, scale: float) -> None:
        super().__init__(num_embeddings, dim)
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        """Return the scaled embeddings of ids."""
        return super().forward(ids) * self.scale


class OffsetEmbedding(LoadedEmbedding):
    """Position embeddings, of which the first two rows are unused."""

    def __init__(self, num_positions: int, dim: int) -> None:
        self.offset = 2
        super().__init__(num_positions + self.offset, dim)


class SelfAttention(nn.Module):
    """Attention with four projections; the decoder's cross-attention has the same weights."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.k_proj = LoadedLinear(dim, dim)
        self.v_proj = LoadedLinear(dim, dim)
        self.q_proj = LoadedLinear(dim, dim)
        self.out_proj = LoadedLinear(dim, dim)

    def forward(self, hidden_BND: Tensor, mask_B1NN: Tensor | None) -> Tensor:
        """Attend to the positions that the mask allows."""
        shape = (*hidden_BND.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_BND).view(shape).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B1NN, scale=self.scaling)
        attended = attended.transpose(1, 2).contiguous().reshape(*hidden_BND.shape[:-1], -1)
        output: Tensor = self.out_proj(attended.contiguous())
        return output


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a norm behind the residual sum."""

    def __init__(self, sizes: TextArchitecture) -> None:
        super().__init__()
        self.self_attn = SelfAttention(sizes.d_model, sizes.encoder_attention_heads)
        self.self_attn_layer_norm = LoadedNorm(sizes.d_model)
        self.fc1 = LoadedLinear(sizes.d_model, sizes.encoder_ffn_dim)
        self.fc2 = LoadedLinear(sizes.encoder_ffn_dim, sizes.d_model)
        self.final_layer_norm = LoadedNorm(sizes.d_model)

    def forward(self, hidden_BND: Tensor, mask_B1NN: Tensor | None) -> Tensor:
        """Compute the layer."""
        hidden_BND = self.self_attn_layer_norm(hidden_BND + self.self_attn(hidden_BND, mask_B1NN))
        hidden_BND = self.final_layer_norm(hidden_BND + self.fc2(F.gelu(self.fc1(hidden_BND))))
        if hidden_BND.dtype == torch.float16 and not torch.isfinite(hidden_BND).all():
            limit = torch.finfo(hidden_BND.dtype).max - FLOAT16_MARGIN
            hidden_BND = torch.clamp(hidden_BND, min=-limit, max=limit)
        return hidden_BND


class DecoderLayerWeights(nn.Module):
    """The weights of a decoder layer, which the engine's decoder computes itself."""

    def __init__(self, sizes: TextArchitecture) -> None:
        super().__init__()
        self.self_attn = SelfAttention(sizes.d_model, sizes.decoder_attention_heads)
        self.self_attn_layer_norm = LoadedNorm(sizes.d_model)
        self.encoder_attn = SelfAttention(sizes.d_model, sizes.decoder_attention_heads)
        self.encoder_attn_layer_norm = LoadedNorm(sizes.d_model)
        self.fc1 = LoadedLinear(sizes.d_model, sizes.decoder_ffn_dim)
        self.fc2 = LoadedLinear(sizes.decoder_ffn_dim, sizes.d_model)
        self.final_layer_norm = LoadedNorm(sizes.d_model)
        self.activation_fn = F.gelu


class Coder(nn.Module):
    """What encoder and decoder have in common: embeddings, their norm, and layers."""

    def __init__(self, sizes: TextArchitecture, embed_tokens: ScaledEmbedding, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.embed_positions = OffsetEmbedding(sizes.max_position_embeddings, sizes.d_model)
        self.layers = nn.ModuleList(layers)
        self.layernorm_embedding = LoadedNorm(sizes.d_model)


class TextEncoder(Coder):
    """The encoder of image features and prompt."""

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> HiddenStates:
        """Encode (B, N, D); the mask (B, N) has a 0 at padding."""
        batch, positions = inputs_embeds.shape[:2]
        offset = self.embed_positions.offset
        embed_ND = self.embed_positions.weight[offset : offset + positions]
        hidden_BND = self.layernorm_embedding(inputs_embeds + embed_ND)
        mask_B1NN = None
        if attention_mask is not None:
            mask_B1NN = attention_mask.bool()[:, None, None, :].expand(batch, 1, positions, positions)
        for layer in self.layers:
            hidden_BND = layer(hidden_BND, mask_B1NN)
        return HiddenStates(hidden_BND)


class LanguageModel(nn.Module):
    """Encoder and decoder; the word embedding is one tensor for both."""

    def __init__(self, sizes: TextArchitecture, vocab_size: int) -> None:
        super().__init__()
        scale = math.sqrt(sizes.d_model) if sizes.scale_embedding else 1.0
        self.shared = ScaledEmbedding(vocab_size, sizes.d_model, scale)
        self.encoder = TextEncoder(sizes, self.shared, [EncoderLayer(sizes) for _ in range(sizes.encoder_layers)])
        self.decoder = Coder(sizes, self.shared, [DecoderLayerWeights(sizes) for _ in range(sizes.decoder_layers)])
