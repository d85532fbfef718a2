"""The sizes of a checkpoint, read from its config without transformers, which takes seconds to import.

Fields and defaults are those of transformers' `Florence2VisionConfig` and `BartConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

_Part = TypeVar("_Part", "VisionArchitecture", "TextArchitecture")


@dataclass(frozen=True)
class VisionArchitecture:
    """The sizes of the vision tower; tuples have one entry for each stage."""

    in_channels: int = 3
    depths: tuple[int, ...] = (1, 1, 9, 1)
    patch_size: tuple[int, ...] = (7, 3, 3, 3)
    patch_stride: tuple[int, ...] = (4, 2, 2, 2)
    patch_padding: tuple[int, ...] = (3, 1, 1, 1)
    patch_prenorm: tuple[bool, ...] = (False, True, True, True)
    embed_dim: tuple[int, ...] = (128, 256, 512, 1024)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    num_groups: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    activation_function: str = "gelu"
    projection_dim: int = 1024
    max_temporal_embeddings: int = 100
    max_position_embeddings: int = 50

    @property
    def is_consistent(self) -> bool:
        """Return whether every stage has all sizes, and its heads and groups divide its channels."""
        stages = {len(value) for value in vars(self).values() if isinstance(value, tuple)}
        counts = zip(self.embed_dim, self.num_heads, self.num_groups, strict=len(stages) == 1)
        return len(stages) == 1 and all(
            heads > 0 and groups > 0 and dim % heads == dim % groups == 0 for dim, heads, groups in counts
        )


@dataclass(frozen=True)
class TextArchitecture:
    """The sizes and token ids of encoder and decoder."""

    max_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    activation_function: str = "gelu"
    d_model: int = 1024
    scale_embedding: bool = False
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    decoder_start_token_id: int | None = 2

    @property
    def is_consistent(self) -> bool:
        """Return whether the heads divide the model's size, and a decoder exists."""
        heads = (self.encoder_attention_heads, self.decoder_attention_heads)
        return self.decoder_layers > 0 and all(each > 0 and self.d_model % each == 0 for each in heads)


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model, under the names that its parts have in `Florence2Config`."""

    vision_config: VisionArchitecture
    text_config: TextArchitecture

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self | None:
        """Read a config in transformers' names; None for anything unusual, which transformers has to judge."""
        vision = _read(VisionArchitecture, config.get("vision_config") or {})
        text = _read(TextArchitecture, config.get("text_config") or {})
        if vision is None or text is None or not (vision.is_consistent and text.is_consistent):
            return None
        is_known = {vision.activation_function, text.activation_function} == {"gelu"}
        return cls(vision, text) if is_known and vision.projection_dim == text.d_model else None


def _read(part: type[_Part], values: Mapping[str, Any]) -> _Part | None:
    """Read the fields of one part; None where a value does not have the type of its default."""
    known: dict[str, Any] = {}
    for field in fields(part):
        if field.name in values:
            value = values[field.name]
            value = tuple(value) if isinstance(value, list) else value
            if not _is_like(value, field.default) and not (value is None and "None" in str(field.type)):
                return None
            known[field.name] = value
    return part(**known)


def _is_like(value: Any, default: Any) -> bool:
    """Return whether a value has the type of a default, and is positive where it is a size."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) > 0 and all(_is_like(each, default[0]) for each in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return type(value) is type(default) and (not isinstance(value, int) or value >= 0)
