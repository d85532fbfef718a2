"""A model of exported graphs, with the interface of `Florence2ForConditionalGeneration`.

Its search is transformers' `generate`: greedy, beams and sampling. `GenerateEngine` takes it as it takes a model, too.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import EncoderDecoderCache, Florence2Config, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.florence2.modeling_florence2 import Florence2PreTrainedModel

Arrays = dict[str, np.ndarray]
SIDES, PARTS = ("decoder", "encoder"), ("key", "value")


class Graphs(Protocol):
    """The graphs of one exported model, run by one runtime; all arrays are float32 or int64."""

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """Return the features (B, N, D) of pixels (B, 3, H, W)."""

    def embed_tokens(self, input_ids: np.ndarray) -> np.ndarray:
        """Return the embeddings (B, N, D) of ids (B, N)."""

    def encode(self, inputs_embeds: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return the encoder's states (B, N, D)."""

    def decode(self, inputs_embeds: np.ndarray, states: np.ndarray, mask: np.ndarray, past: Arrays) -> Arrays:
        """Return `logits` and `present.N.{decoder,encoder}.{key,value}`.

        `past` is empty at the first step; later it holds `past_key_values.*`, and only the decoder's `present` counts.
        """


class ExportedModel(Florence2PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Florence-2 whose arithmetic is done by exported graphs; it cannot be trained."""

    def __init__(self, config: Florence2Config, generation_config: GenerationConfig, graphs: Graphs) -> None:
        super().__init__(config)
        self.generation_config = generation_config
        self.graphs = graphs
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of tensors that enter and leave."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of tensors that enter and leave."""
        return torch.float32

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> SimpleNamespace:
        """Return the projected features of images as `pooler_output` (B, N, D)."""
        return SimpleNamespace(pooler_output=torch.from_numpy(self.graphs.encode_image(_array(pixel_values))))

    def get_input_embeddings(self) -> Any:
        """Return the function from ids to embeddings."""
        return lambda input_ids: torch.from_numpy(self.graphs.embed_tokens(_array(input_ids)))

    def get_encoder(self, modality: str | None = None) -> Any:  # noqa: ARG002
        """Return the function from embeddings and mask to the encoder's states."""
        return self._encode

    def _encode(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long)
        states = self.graphs.encode(_array(inputs_embeds), _array(attention_mask))
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states))

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        **options: Any,
    ) -> Any:
        """Generate as transformers does, from ids with image tokens and pixels, or from encoder outputs."""
        if encoder_outputs is None:
            encoder_outputs = self._encode_prompt(input_ids, pixel_values, attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones(encoder_outputs.last_hidden_state.shape[:2], dtype=torch.long)
        return super().generate(encoder_outputs=encoder_outputs, attention_mask=attention_mask, **options)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: EncoderDecoderCache | None = None,
        past_key_values: EncoderDecoderCache | None = None,  # the name of `cache` in earlier versions of transformers
        **_: Any,
    ) -> Seq2SeqLMOutput:
        """Return the logits of `decoder_input_ids`; a cache is read and extended."""
        if encoder_outputs is None:
            encoder_outputs = self._encode_prompt(input_ids, pixel_values, attention_mask)
        states = encoder_outputs.last_hidden_state
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long)
        cache = cache if cache is not None else past_key_values
        assert decoder_input_ids is not None, "the decoder needs ids"
        embeds = self.graphs.embed_tokens(_array(decoder_input_ids))
        outputs = self.graphs.decode(embeds, _array(states), _array(attention_mask), _read_cache(cache))
        if cache is not None:
            _extend_cache(cache, outputs, self.config.text_config.decoder_layers)
        return Seq2SeqLMOutput(logits=torch.from_numpy(outputs["logits"]))

    def _encode_prompt(
        self, input_ids: Tensor | None, pixel_values: Tensor | None, attention_mask: Tensor | None
    ) -> BaseModelOutput:
        assert input_ids is not None, "the encoder needs ids"
        embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.get_image_features(pixel_values).pooler_output
            is_image = (input_ids == self.config.image_token_id).unsqueeze(-1)
            embeds = embeds.masked_scatter(is_image, features)
        return self._encode(embeds, attention_mask)


def _array(tensor: Tensor) -> np.ndarray:
    kind = torch.float32 if tensor.is_floating_point() else torch.long
    return tensor.detach().to("cpu", kind).contiguous().numpy()


def _read_cache(cache: EncoderDecoderCache | None) -> Arrays:
    """Return the inputs `past_key_values.*`; none where the cache is empty."""
    if cache is None or not cache.get_seq_length():
        return {}
    sides = {"decoder": cache.self_attention_cache, "encoder": cache.cross_attention_cache}
    return {
        f"past_key_values.{number}.{side}.{part}": _array(getattr(layer, f"{part}s"))
        for side in SIDES
        for number, layer in enumerate(sides[side].layers)
        for part in PARTS
    }


def _extend_cache(cache: EncoderDecoderCache, outputs: Mapping[str, np.ndarray], num_layers: int) -> None:
    """Add the new positions of the decoder, and at the first step the cross-attention's keys and values."""
    past = cache.get_seq_length()
    for number in range(num_layers):
        keys, values = (torch.from_numpy(outputs[f"present.{number}.decoder.{part}"]) for part in PARTS)
        if not past:
            cross = (torch.from_numpy(outputs[f"present.{number}.encoder.{part}"]) for part in PARTS)
            cache.cross_attention_cache.update(*cross, number)
            cache.is_updated[number] = True
        cache.self_attention_cache.update(keys[:, :, past:], values[:, :, past:], number)
