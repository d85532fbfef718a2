"""DaViT and its projector for prediction: module names, order of operations and results of transformers' classes.

Shapes: B images, C channels, H x W positions, N = H * W positions in a row, M windows of T positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.model.inference.architecture import VisionArchitecture
from florence2.model.inference.layers import LoadedConv, LoadedEmbedding, LoadedLinear, LoadedNorm


class HiddenStates(NamedTuple):
    """The output of a module, under the name that transformers' outputs have."""

    last_hidden_state: Tensor


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = LoadedLinear(dim, hidden_dim)
        self.fc2 = LoadedLinear(hidden_dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute both layers."""
        output: Tensor = self.fc2(F.gelu(self.fc1(hidden)))
        return output


class PatchEmbedding(nn.Module):
    """The convolution at the start of a stage, with a norm before or behind it."""

    def __init__(self, sizes: VisionArchitecture, stage: int) -> None:
        super().__init__()
        channels = sizes.in_channels if stage == 0 else sizes.embed_dim[stage - 1]
        dim = sizes.embed_dim[stage]
        self.is_norm_first = sizes.patch_prenorm[stage]
        kernel, stride, padding = sizes.patch_size[stage], sizes.patch_stride[stage], sizes.patch_padding[stage]
        self.conv = LoadedConv(channels, dim, kernel, stride, padding)
        self.norm = LoadedNorm(channels if self.is_norm_first else dim)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """Shrink positions and widen channels."""
        if self.is_norm_first:
            return self.conv(self._normalize(hidden_BCHW))  # type: ignore[no-any-return]
        return self._normalize(self.conv(hidden_BCHW))

    def _normalize(self, hidden_BCHW: Tensor) -> Tensor:
        normalized: Tensor = self.norm(hidden_BCHW.permute(0, 2, 3, 1))
        return normalized.permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Attention between the positions of each window of an image."""

    def __init__(self, sizes: VisionArchitecture, stage: int) -> None:
        super().__init__()
        dim = sizes.embed_dim[stage]
        self.num_heads, self.window_size = sizes.num_heads[stage], sizes.window_size
        self.scale = (dim // self.num_heads) ** -0.5
        self.qkv = LoadedLinear(dim, dim * 3, bias=sizes.qkv_bias)
        self.proj = LoadedLinear(dim, dim)

    def forward(self, hidden_BHWC: Tensor) -> Tensor:
        """Compute attention, (B, H, W, C) to (B, N, C)."""
        batch, height, width, dim = hidden_BHWC.shape
        size = self.window_size
        padded = F.pad(hidden_BHWC, (0, 0, 0, -width % size, 0, -height % size))
        rows, columns = padded.shape[1] // size, padded.shape[2] // size
        windows = padded.view(batch, rows, size, columns, size, dim).permute(0, 1, 3, 2, 4, 5).contiguous()
        windows_MTC = self._attend(windows.view(-1, size * size, dim))
        windows = windows_MTC.view(batch, rows, columns, size, size, dim).permute(0, 1, 3, 2, 4, 5).contiguous()
        merged = windows.view(batch, rows * size, columns * size, dim)[:, :height, :width, :]
        return merged.contiguous().view(batch, height * width, dim)

    def _attend(self, windows_MTC: Tensor) -> Tensor:
        num_windows, positions, dim = windows_MTC.shape
        qkv = self.qkv(windows_MTC).reshape(num_windows, positions, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        output: Tensor = self.proj(attended.transpose(1, 2).contiguous().view(num_windows, positions, dim))
        return output


class ChannelAttention(nn.Module):
    """Attention between the channels of each group, over all positions."""

    def __init__(self, sizes: VisionArchitecture, stage: int) -> None:
        super().__init__()
        dim = sizes.embed_dim[stage]
        self.groups = sizes.num_groups[stage]
        self.qkv = LoadedLinear(dim, dim * 3, bias=sizes.qkv_bias)
        self.proj = LoadedLinear(dim, dim)

    def forward(self, hidden_BNC: Tensor) -> Tensor:
        """Compute attention, (B, N, C) to (B, N, C)."""
        batch, positions, dim = hidden_BNC.shape
        qkv = self.qkv(hidden_BNC).reshape(batch, positions, 3, self.groups, dim // self.groups)
        query, key, value = qkv.permute(2, 0, 3, 4, 1).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, scale=positions**-0.5)
        attended = attended.transpose(1, 2).contiguous().permute(0, 3, 2, 1)
        output: Tensor = self.proj(attended.reshape(batch, positions, dim))
        return output


class AttentionBlock(nn.Module):
    """Attention of one kind and a feed-forward network, each behind a depthwise convolution."""

    def __init__(self, sizes: VisionArchitecture, stage: int) -> None:
        super().__init__()
        dim = sizes.embed_dim[stage]
        self.conv1 = LoadedConv(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = LoadedNorm(dim)
        self.conv2 = LoadedConv(dim, dim, 3, padding=1, groups=dim)
        self.norm2 = LoadedNorm(dim)
        self.ffn = FeedForward(dim, int(dim * sizes.mlp_ratio))

    def attend(self, hidden_BNC: Tensor, size: torch.Size) -> Tensor:
        """Compute the attention of the block; `size` is (H, W)."""
        raise NotImplementedError

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        """Compute the block; shapes stay."""
        shape = hidden_BCHW.shape
        hidden_BNC = (self.conv1(hidden_BCHW) + hidden_BCHW).flatten(2).transpose(1, 2)
        hidden_BNC = hidden_BNC + self.attend(self.norm1(hidden_BNC), shape[2:])
        hidden_BCHW = hidden_BNC.transpose(1, 2).view(shape)
        hidden_BNC = (self.conv2(hidden_BCHW) + hidden_BCHW).flatten(2).transpose(1, 2)
        hidden_BNC = hidden_BNC + self.ffn(self.norm2(hidden_BNC))
        output: Tensor = hidden_BNC.transpose(1, 2).view(shape)
        return output


class SpatialBlock(AttentionBlock):
    """The block with window attention."""

    def __init__(self, sizes: VisionArchitecture, stage: int) -> None:
        super().__init__(sizes, stage)
        self.window_attn = WindowAttention(sizes, stage)

    def attend(self, hidden_BNC: Tensor, size: torch.Size) -> Tensor:
        """Compute window attention."""
        attended: Tensor = self.window_attn(hidden_BNC.view(len(hidden_BNC), *size, -1))
        return attended


class ChannelBlock(AttentionBlock):
    """The block with channel attention."""

    def __init__(self, sizes: VisionArchitecture, stage: int) -> None:
        super().__init__(sizes, stage)
        self.channel_attn = ChannelAttention(sizes, stage)

    def attend(self, hidden_BNC: Tensor, size: torch.Size) -> Tensor:  # noqa: ARG002
        """Compute channel attention."""
        attended: Tensor = self.channel_attn(hidden_BNC)
        return attended


class VisionTower(nn.Module):
    """DaViT: pixels (B, 3, H, W) to features (B, C, H', W')."""

    def __init__(self, sizes: VisionArchitecture) -> None:
        super().__init__()
        self.convs: Any = nn.ModuleList(PatchEmbedding(sizes, stage) for stage in range(len(sizes.depths)))
        self.blocks: Any = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleDict(
                    {"spatial_block": SpatialBlock(sizes, stage), "channel_block": ChannelBlock(sizes, stage)}
                )
                for _ in range(depth)
            )
            for stage, depth in enumerate(sizes.depths)
        )

    def forward(self, pixels_BCHW: Tensor) -> HiddenStates:
        """Compute all stages."""
        hidden_BCHW = pixels_BCHW.to(dtype=self.convs[0].conv.weight.dtype)
        for conv, stage in zip(self.convs, self.blocks, strict=True):
            hidden_BCHW = conv(hidden_BCHW)
            for pair in stage:
                hidden_BCHW = pair["channel_block"](pair["spatial_block"](hidden_BCHW))
        return HiddenStates(hidden_BCHW)


class PositionEmbedding(nn.Module):
    """Learned embeddings of rows and columns."""

    def __init__(self, sizes: VisionArchitecture) -> None:
        super().__init__()
        dim = sizes.embed_dim[-1]
        self.row_embeddings = LoadedEmbedding(sizes.max_position_embeddings, dim // 2)
        self.column_embeddings = LoadedEmbedding(sizes.max_position_embeddings, dim - dim // 2)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return the embeddings of all positions, (1, C, H, W)."""
        height, width = features_BCHW.shape[-2:]
        column_WE, row_HE = self.column_embeddings.weight[:width], self.row_embeddings.weight[:height]
        embeddings = (column_WE.unsqueeze(0).expand(height, -1, -1), row_HE.unsqueeze(1).expand(-1, width, -1))
        return torch.cat(embeddings, dim=-1).permute(2, 0, 1).unsqueeze(0)


class TemporalEmbedding(nn.Module):
    """Cosine embeddings of the frames of a video, of which an image is the first."""

    def __init__(self, sizes: VisionArchitecture) -> None:
        super().__init__()
        self.pos_idx_to_embed = nn.Buffer(torch.empty(sizes.max_temporal_embeddings, sizes.embed_dim[-1]))


class Projector(nn.Module):
    """The projection of features (B, C, H, W) to image tokens (B, 1 + N, D), the mean of all positions first."""

    def __init__(self, sizes: VisionArchitecture) -> None:
        super().__init__()
        self.image_projection = LoadedLinear(sizes.embed_dim[-1], sizes.projection_dim, bias=False)
        self.image_proj_norm = LoadedNorm(sizes.projection_dim)
        self.image_position_embed = PositionEmbedding(sizes)
        self.visual_temporal_embed = TemporalEmbedding(sizes)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Add positions, append the mean and project."""
        features_BNC = (features_BCHW + self.image_position_embed(features_BCHW)).flatten(2).transpose(1, 2)
        features_BNC = features_BNC + self.visual_temporal_embed.pos_idx_to_embed[:1].unsqueeze(1)
        frames_BFNC = features_BNC.unsqueeze(1)
        tokens_BNC = torch.cat([frames_BFNC.mean(dim=2), frames_BFNC.mean(dim=1)], dim=1)
        projected: Tensor = self.image_proj_norm(self.image_projection(tokens_BNC))
        return projected
