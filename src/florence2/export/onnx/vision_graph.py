"""The vision tower and its projection as one ONNX graph: pixel_values -> image_features."""

from typing import Any

import onnx
import torch

from florence2.export.onnx.graph_builder import GraphBuilder, floats

Size = tuple[int, int]


def vision_graph(model: Any, size: Size, dtype: torch.dtype) -> onnx.ModelProto:
    """Build the graph for images of `size` (height, width); the batch is dynamic.

    `pixel_values` are (B, 3, H, W) and `image_features` (B, N, D), both float32.
    """
    tower, graph, (height, width) = model.model.vision_tower, GraphBuilder(dtype), size
    value_BCHW = graph.cast_in("pixel_values")
    for stage, (embedding, blocks) in enumerate(zip(tower.convs, tower.blocks, strict=True)):
        value_BCHW, size = _patch_embedding(graph, value_BCHW, embedding, f"vision_tower.convs.{stage}", size)
        for number, block in enumerate(blocks):
            name = f"vision_tower.blocks.{stage}.{number}"
            value_BCHW = _spatial_block(graph, value_BCHW, block.spatial_block, f"{name}.spatial_block", size)
            value_BCHW = _channel_block(graph, value_BCHW, block.channel_block, f"{name}.channel_block", size)
    features = _projection(graph, value_BCHW, model.model.multi_modal_projector, size)
    graph.cast_out(features, "image_features")
    config = model.config.vision_config
    return graph.to_model(
        "vision_encoder",
        [floats("pixel_values", "batch_size", config.in_channels, height, width)],
        [floats("image_features", "batch_size", size[0] * size[1] + 1, config.projection_dim)],
    )


def _patch_embedding(graph: GraphBuilder, value_BCHW: str, layer: Any, name: str, size: Size) -> tuple[str, Size]:
    """Convolve with a stride, and normalize the channels before or after; return the new size, too."""
    if layer.pre_norm:
        value_BCHW = _normalize_channels(graph, value_BCHW, layer.norm, f"{name}.norm")
    value_BCHW = graph.convolution(value_BCHW, layer.conv, f"{name}.conv")
    if not layer.pre_norm:
        value_BCHW = _normalize_channels(graph, value_BCHW, layer.norm, f"{name}.norm")
    height, width = ((axis + 2 * layer.padding - layer.patch_size) // layer.stride + 1 for axis in size)
    return value_BCHW, (height, width)


def _normalize_channels(graph: GraphBuilder, value_BCHW: str, layer: Any, name: str) -> str:
    value_BHWC = graph.layer_norm(graph.transpose(value_BCHW, 0, 2, 3, 1), layer, name)
    return graph.transpose(value_BHWC, 0, 3, 1, 2)


def _spatial_block(graph: GraphBuilder, value_BCHW: str, block: Any, name: str, size: Size) -> str:
    residual_BNC = _convolved_tokens(graph, value_BCHW, block.conv1, f"{name}.conv1")
    value_BNC = graph.layer_norm(residual_BNC, block.norm1, f"{name}.norm1")
    value_BNC = _window_attention(graph, value_BNC, block.window_attn, f"{name}.window_attn", size)
    return _feed_forward(graph, graph.add("Add", residual_BNC, value_BNC), block, name, size)


def _channel_block(graph: GraphBuilder, value_BCHW: str, block: Any, name: str, size: Size) -> str:
    residual_BNC = _convolved_tokens(graph, value_BCHW, block.conv1, f"{name}.conv1")
    value_BNC = graph.layer_norm(residual_BNC, block.norm1, f"{name}.norm1")
    value_BNC = _channel_attention(graph, value_BNC, block.channel_attn, f"{name}.channel_attn", size)
    return _feed_forward(graph, graph.add("Add", residual_BNC, value_BNC), block, name, size)


def _convolved_tokens(graph: GraphBuilder, value_BCHW: str, layer: Any, name: str) -> str:
    """Add the depthwise convolution of a value to it, and return its pixels as tokens (B, N, C)."""
    value_BCHW = graph.add("Add", graph.convolution(value_BCHW, layer, name), value_BCHW)
    return graph.transpose(graph.reshape(value_BCHW, 0, 0, -1), 0, 2, 1)


def _to_pixels(graph: GraphBuilder, value_BNC: str, size: Size) -> str:
    return graph.reshape(graph.transpose(value_BNC, 0, 2, 1), 0, 0, *size)


def _feed_forward(graph: GraphBuilder, value_BNC: str, block: Any, name: str, size: Size) -> str:
    value_BCHW = _to_pixels(graph, value_BNC, size)
    residual_BNC = _convolved_tokens(graph, value_BCHW, block.conv2, f"{name}.conv2")
    value_BNC = graph.layer_norm(residual_BNC, block.norm2, f"{name}.norm2")
    value_BNC = graph.linear(value_BNC, block.ffn.fc1, f"{name}.ffn.fc1")
    value_BNC = graph.activation(value_BNC, block.ffn.config.activation_function)
    value_BNC = graph.linear(value_BNC, block.ffn.fc2, f"{name}.ffn.fc2")
    return _to_pixels(graph, graph.add("Add", residual_BNC, value_BNC), size)


def _split_heads(graph: GraphBuilder, value: str, layer: Any, name: str, heads: int, scale: float) -> list[str]:
    """Project to query, multiplied by `scale`, key and value, all (batch, tokens, heads, channels of a head)."""
    scales = torch.ones(3 * layer.dim)
    scales[: layer.dim] = scale
    qkv = graph.linear(value, layer.qkv, f"{name}.qkv", scales)
    parts = graph.add_many("Split", qkv, outputs=3, axis=-1, num_outputs=3)
    return [graph.reshape(part, 0, 0, heads, layer.dim // heads) for part in parts]


def _window_attention(graph: GraphBuilder, value_BNC: str, layer: Any, name: str, size: Size) -> str:
    """Attend within windows; those at the right and bottom edges are padded with zeros."""
    window, channels, heads = layer.window_size, layer.dim, layer.num_heads
    rows, columns = (-(-axis // window) for axis in size)
    value_BHWC = graph.reshape(value_BNC, 0, *size, channels)
    bottom, right = rows * window - size[0], columns * window - size[1]
    if bottom or right:
        value_BHWC = graph.add("Pad", value_BHWC, graph.ints(0, 0, 0, 0, 0, bottom, right, 0))
    value = graph.transpose(graph.reshape(value_BHWC, -1, rows, window, columns, window, channels), 0, 1, 3, 2, 4, 5)
    value = graph.reshape(value, -1, window * window, channels)
    query, key, values = _split_heads(graph, value, layer, name, heads, layer.scale)
    query, values = (graph.transpose(each, 0, 2, 1, 3) for each in (query, values))
    value = graph.attention(query, graph.transpose(key, 0, 2, 3, 1), values)
    value = graph.reshape(graph.transpose(value, 0, 2, 1, 3), 0, 0, channels)
    value = graph.linear(value, layer.proj, f"{name}.proj")
    value = graph.transpose(graph.reshape(value, -1, rows, columns, window, window, channels), 0, 1, 3, 2, 4, 5)
    value_BHWC = graph.reshape(value, -1, rows * window, columns * window, channels)
    if bottom or right:
        value_BHWC = graph.add("Slice", value_BHWC, graph.ints(0, 0), graph.ints(*size), graph.ints(1, 2))
    return graph.reshape(value_BHWC, 0, size[0] * size[1], channels)


def _channel_attention(graph: GraphBuilder, value_BNC: str, layer: Any, name: str, size: Size) -> str:
    """Attend between the channels of a group, over all tokens."""
    query, key, value = _split_heads(graph, value_BNC, layer, name, layer.groups, (size[0] * size[1]) ** -0.5)
    query, value = (graph.transpose(each, 0, 2, 3, 1) for each in (query, value))
    value = graph.attention(query, graph.transpose(key, 0, 2, 1, 3), value)
    value_BNC = graph.reshape(graph.transpose(value, 0, 3, 1, 2), 0, 0, layer.dim)
    return graph.linear(value_BNC, layer.proj, f"{name}.proj")


def _projection(graph: GraphBuilder, value_BCHW: str, projector: Any, size: Size) -> str:
    """Add the positions, prepend the mean of all tokens, and project to the text model's width."""
    name = "multi_modal_projector"
    with torch.no_grad():
        weight = projector.image_projection.weight
        blank = torch.zeros((1, projector.vision_embedding_dim, *size), dtype=weight.dtype, device=weight.device)
        positions_NC = projector.image_position_embed(blank).flatten(2).transpose(1, 2)
        positions_NC = positions_NC.float() + projector.visual_temporal_embed(positions_NC[:, :1]).float()
    value_BNC = graph.transpose(graph.reshape(value_BCHW, 0, 0, -1), 0, 2, 1)
    value_BNC = graph.add("Add", value_BNC, graph.weight(f"{name}.positions", positions_NC))
    mean = graph.add("ReduceMean", value_BNC, graph.ints(1), keepdims=1)
    value_BNC = graph.add("Concat", mean, value_BNC, axis=1)
    value_BNC = graph.linear(value_BNC, projector.image_projection, f"{name}.image_projection")
    return graph.layer_norm(value_BNC, projector.image_proj_norm, f"{name}.image_proj_norm")
