"""The text half of Florence-2 as ONNX graphs: token embedding, encoder, and decoder with its cache.

Keys and values of the cache are (B, heads, positions, head size), as transformers has them.
"""

from collections.abc import Iterable
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from florence2.export.onnx.graph_builder import GraphBuilder, booleans, floats, integers

LOGITS, USE_CACHE = "logits", "use_cache_branch"
_STATES, _STATES_MASK = "encoder_hidden_states", "encoder_attention_mask"


def embedding_graph(model: Any, dtype: torch.dtype) -> onnx.ModelProto:
    """Build `input_ids` (B, N) -> `inputs_embeds` (B, N, D)."""
    graph, embedding = GraphBuilder(dtype), model.get_input_embeddings()
    value = graph.add("Gather", graph.weight("shared.weight", embedding.weight), "input_ids")
    scale = float(getattr(embedding, "embed_scale", 1.0))
    if scale != 1.0:
        value = graph.add("Mul", value, graph.number(scale))
    graph.cast_out(value, "inputs_embeds")
    axes = ("batch_size", "sequence_length")
    outputs = [floats("inputs_embeds", *axes, model.config.text_config.d_model)]
    return graph.to_model("embed_tokens", [integers("input_ids", *axes)], outputs)


def encoder_graph(model: Any, dtype: torch.dtype) -> onnx.ModelProto:
    """Build `inputs_embeds`, `attention_mask` -> `last_hidden_state` (B, N, D)."""
    graph, encoder, config = GraphBuilder(dtype), model.model.language_model.encoder, model.config.text_config
    mask = _padding_mask(graph, "attention_mask")
    value = graph.cast_in("inputs_embeds")
    value = _with_positions(graph, value, encoder, "encoder", graph.ints(0))
    for number, layer in enumerate(encoder.layers):
        name = f"encoder.layers.{number}"
        heads = _Heads(graph, layer.self_attn, f"{name}.self_attn")
        attended = heads.attend(value, heads.keys(value), heads.values(value), mask)
        value = _norm_of_sum(graph, value, attended, layer.self_attn_layer_norm, f"{name}.self_attn_layer_norm")
        value = _clip_half(graph, _feed_forward(graph, value, layer, name, config))
    graph.cast_out(value, "last_hidden_state")
    axes = ("batch_size", "encoder_sequence_length")
    outputs = [floats("last_hidden_state", *axes, config.d_model)]
    inputs = [floats("inputs_embeds", *axes, config.d_model), integers("attention_mask", *axes)]
    return graph.to_model("encoder_model", inputs, outputs)


def cross_attention_graph(model: Any, dtype: torch.dtype) -> onnx.ModelProto:
    """Build `encoder_hidden_states` -> `present.N.encoder.*`, the keys and values of the decoder's cross-attention."""
    graph, config = GraphBuilder(dtype), model.config.text_config
    states = graph.cast_in(_STATES)
    for number, layer in enumerate(model.model.language_model.decoder.layers):
        _write_cross_cache(graph, _cross_heads(graph, layer, number), states, number)
    inputs = [floats(_STATES, "batch_size", "encoder_sequence_length", config.d_model)]
    return graph.to_model("cross_attention", inputs, _cache_infos("present", config, ["encoder"], ""))


def decoder_graph(model: Any, dtype: torch.dtype) -> onnx.ModelProto:
    """Build the decoder for a cache with the keys and values of `cross_attention_graph` and any number of positions."""
    graph, config = GraphBuilder(dtype), model.config.text_config
    value = _decode(graph, model, has_cache=True)
    _write_logits(graph, model, value, LOGITS)
    inputs = [floats("inputs_embeds", "batch_size", "decoder_sequence_length", config.d_model)]
    inputs += [integers(_STATES_MASK, "batch_size", "encoder_sequence_length")]
    inputs += _cache_infos("past_key_values", config, ["decoder", "encoder"], "past_")
    return graph.to_model("decoder_model", inputs, _decoder_outputs(config, ["decoder"]))


def merged_decoder_graph(model: Any, dtype: torch.dtype) -> onnx.ModelProto:
    """Build the decoder with `use_cache_branch`, the switch between the first step and the following ones.

    The first step ignores the cache. The following ones ignore `encoder_hidden_states`, and their outputs
    `present.N.encoder.*` are empty: a caller continues with the ones of the first step, as transformers.js and optimum
    do.
    """
    graph, config = GraphBuilder(dtype), model.config.text_config
    outputs = _decoder_outputs(config, ["decoder", "encoder"])
    branches = {}
    for branch, has_cache in (("then", True), ("else", False)):
        inner = graph.branch(f"{branch}.")
        value = _decode(inner, model, has_cache=has_cache)
        _write_logits(inner, model, value, f"{branch}.{LOGITS}")
        if has_cache:
            _write_empty_cross_cache(inner, config)
        infos = _decoder_outputs(config, ["decoder", "encoder"], f"{branch}.", is_typed_only=True)
        branches[f"{branch}_branch"] = inner.to_graph(branch, [], infos)
    graph.add_many("If", USE_CACHE, outputs=[info.name for info in outputs], **branches)
    inputs = [
        floats("inputs_embeds", "batch_size", "decoder_sequence_length", config.d_model),
        floats(_STATES, "batch_size", "encoder_sequence_length", config.d_model),
        integers(_STATES_MASK, "batch_size", "encoder_sequence_length"),
        *_cache_infos("past_key_values", config, ["decoder", "encoder"], "past_"),
        booleans(USE_CACHE, 1),
    ]
    return graph.to_model("decoder_model_merged", inputs, outputs)


class _Heads:
    """The attention of one layer: projections to query, keys and values, and back."""

    def __init__(self, graph: GraphBuilder, layer: Any, name: str) -> None:
        self.graph, self.layer, self.name = graph, layer, name

    def keys(self, states: str) -> str:
        """Return the keys of states."""
        return self._project(states, self.layer.k_proj, "k_proj")

    def values(self, states: str) -> str:
        """Return the values of states."""
        return self._project(states, self.layer.v_proj, "v_proj")

    def attend(self, states: str, keys: str, values: str, mask: str) -> str:
        """Return what states read from keys and values."""
        query = self._project(states, self.layer.q_proj, "q_proj", self.layer.scaling)
        value = self.graph.attention(query, self.graph.transpose(keys, 0, 1, 3, 2), values, mask)
        value = self.graph.reshape(self.graph.transpose(value, 0, 2, 1, 3), 0, 0, self.layer.embed_dim)
        return self.graph.linear(value, self.layer.out_proj, f"{self.name}.out_proj")

    def _project(self, states: str, layer: Any, part: str, scale: float = 1.0) -> str:
        value = self.graph.linear(states, layer, f"{self.name}.{part}", scale)
        value = self.graph.reshape(value, 0, 0, self.layer.num_heads, self.layer.head_dim)
        return self.graph.transpose(value, 0, 2, 1, 3)


def _decode(graph: GraphBuilder, model: Any, *, has_cache: bool) -> str:
    """Append the decoder's layers, which read and write the cache, and return their last value.

    A name of `present` begins with the prefix of the graph. The cross-attention's keys and values are written where
    they are computed, that is without a cache.
    """
    decoder, config = model.model.language_model.decoder, model.config.text_config
    past = graph.size("past_key_values.0.decoder.key", 2) if has_cache else graph.ints(0)
    self_mask, cross_mask = _causal_mask(graph, past), _padding_mask(graph, _STATES_MASK)
    value = _with_positions(graph, graph.cast_in("inputs_embeds"), decoder, "decoder", past)
    states = "" if has_cache else graph.cast_in(_STATES)
    for number, layer in enumerate(decoder.layers):
        name = f"decoder.layers.{number}"
        own = _Heads(graph, layer.self_attn, f"{name}.self_attn")
        keys, values = own.keys(value), own.values(value)
        if has_cache:
            keys = graph.add("Concat", _past(graph, number, "decoder", "key"), keys, axis=2)
            values = graph.add("Concat", _past(graph, number, "decoder", "value"), values, axis=2)
        graph.cast_out(keys, f"{graph.prefix}present.{number}.decoder.key")
        graph.cast_out(values, f"{graph.prefix}present.{number}.decoder.value")
        attended = own.attend(value, keys, values, self_mask)
        value = _norm_of_sum(graph, value, attended, layer.self_attn_layer_norm, f"{name}.self_attn_layer_norm")
        cross = _cross_heads(graph, layer, number)
        if has_cache:
            keys, values = (_past(graph, number, "encoder", part) for part in ("key", "value"))
        else:
            keys, values = _write_cross_cache(graph, cross, states, number)
        attended = cross.attend(value, keys, values, cross_mask)
        value = _norm_of_sum(graph, value, attended, layer.encoder_attn_layer_norm, f"{name}.encoder_attn_layer_norm")
        value = _feed_forward(graph, value, layer, name, config)
    return value


def _past(graph: GraphBuilder, number: int, side: str, part: str) -> str:
    return graph.cast_in(f"past_key_values.{number}.{side}.{part}")


def _cross_heads(graph: GraphBuilder, layer: Any, number: int) -> _Heads:
    return _Heads(graph, layer.encoder_attn, f"decoder.layers.{number}.encoder_attn")


def _write_cross_cache(graph: GraphBuilder, heads: _Heads, states: str, number: int) -> tuple[str, str]:
    keys, values = heads.keys(states), heads.values(states)
    graph.cast_out(keys, f"{graph.prefix}present.{number}.encoder.key")
    graph.cast_out(values, f"{graph.prefix}present.{number}.encoder.value")
    return keys, values


def _write_empty_cross_cache(graph: GraphBuilder, config: Any) -> None:
    heads = config.decoder_attention_heads
    shape = graph.ints(0, heads, 1, config.d_model // heads)
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    for info in _cache_infos("present", config, ["encoder"], ""):
        graph.add("ConstantOfShape", shape, output=f"{graph.prefix}{info.name}", value=zero)


def _write_logits(graph: GraphBuilder, model: Any, value: str, output: str) -> None:
    graph.cast_out(graph.linear(value, model.lm_head, "lm_head"), output)


def _decoder_outputs(
    config: Any, sides: Iterable[str], prefix: str = "", *, is_typed_only: bool = False
) -> list[onnx.ValueInfoProto]:
    """Declare the decoder's outputs; those of a branch have types alone, because their shapes differ."""
    infos = [floats(LOGITS, "batch_size", "decoder_sequence_length", config.vocab_size)]
    infos += _cache_infos("present", config, sides, "total_")
    if not is_typed_only:
        return infos
    return [helper.make_tensor_value_info(prefix + info.name, TensorProto.FLOAT, None) for info in infos]


def _cache_infos(name: str, config: Any, sides: Iterable[str], length_prefix: str) -> list[onnx.ValueInfoProto]:
    """Declare keys and values of every layer, decoder before encoder."""
    heads = config.decoder_attention_heads
    lengths = {"decoder": f"{length_prefix}decoder_sequence_length", "encoder": "encoder_sequence_length"}
    return [
        floats(f"{name}.{number}.{side}.{part}", "batch_size", heads, lengths[side], config.d_model // heads)
        for number in range(config.decoder_layers)
        for side in sides
        for part in ("key", "value")
    ]


def _with_positions(graph: GraphBuilder, value: str, stack: Any, name: str, start: str) -> str:
    """Add the embeddings of the positions from `start` on, and normalize."""
    layer = stack.embed_positions
    table = graph.weight(f"{name}.embed_positions.weight", layer.weight[layer.offset :])
    end = graph.add("Add", start, graph.size(value, 1))
    value = graph.add("Add", value, graph.add("Slice", table, start, end, graph.ints(0)))
    return graph.layer_norm(value, stack.layernorm_embedding, f"{name}.layernorm_embedding")


def _feed_forward(graph: GraphBuilder, value: str, layer: Any, name: str, config: Any) -> str:
    inner = graph.activation(graph.linear(value, layer.fc1, f"{name}.fc1"), config.activation_function)
    inner = graph.linear(inner, layer.fc2, f"{name}.fc2")
    return _norm_of_sum(graph, value, inner, layer.final_layer_norm, f"{name}.final_layer_norm")


def _norm_of_sum(graph: GraphBuilder, value: str, other: str, layer: Any, name: str) -> str:
    return graph.layer_norm(graph.add("Add", value, other), layer, name)


def _clip_half(graph: GraphBuilder, value: str) -> str:
    """Limit float16 values as transformers' BART encoder does."""
    if graph.dtype != torch.float16:
        return value
    limit = torch.finfo(torch.float16).max - 1000
    return graph.add("Clip", value, graph.number(-limit), graph.number(limit))


def _padding_mask(graph: GraphBuilder, mask_BN: str) -> str:
    """Return (B, 1, 1, N): zero for tokens, the lowest number for padding."""
    is_padding = graph.add("Equal", mask_BN, graph.integer(0))
    mask = graph.add("Where", is_padding, graph.number(graph.lowest), graph.number(0.0))
    return graph.add("Unsqueeze", mask, graph.ints(1, 2))


def _causal_mask(graph: GraphBuilder, past: str) -> str:
    """Return (T, past + T): zero up to each token's own position, the lowest number behind it."""
    total = graph.add("Add", past, graph.size("inputs_embeds", 1))
    start, stop = (graph.add("Squeeze", each) for each in (past, total))
    columns = graph.add("Range", graph.integer(0), stop, graph.integer(1))
    rows = graph.add("Range", start, stop, graph.integer(1))
    is_later = graph.add("Greater", columns, graph.add("Unsqueeze", rows, graph.ints(1)))
    return graph.add("Where", is_later, graph.number(graph.lowest), graph.number(0.0))
