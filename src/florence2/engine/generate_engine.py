"""Transformers' `generate` in batches, behind the interface of `Engine`.

`Engine` is tested against it, token for token; only samples differ, for each has its own random numbers. Predictions
come in the order of the samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

import torch
from transformers.modeling_outputs import BaseModelOutput

from florence2.data.sample import Prediction, Sample
from florence2.devices import is_out_of_memory
from florence2.engine.decoding.kv_cache import halve_slots
from florence2.engine.decoding.location_mass import LocationMass, unpack
from florence2.engine.decoding.outputs import CompletionOutput, to_prediction
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig, ModelGenerationConfig, sample_seed
from florence2.engine.requests import EngineInput, Request, RequestBuilder, RequestQueue
from florence2.engine.stats import Stats
from florence2.errors import UserError
from florence2.model.processing import Preprocessor

DEFAULT_BATCH_SIZE = 8


class GenerateEngine:
    """Predicts samples with transformers' `generate`, `batch_size` at a time."""

    def __init__(self, model: Any, processor: Any, config: EngineConfig | None = None) -> None:
        """Take a model in eval mode, and its processor or the `Preprocessor` made of it."""
        self.config = config or EngineConfig()
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.preprocessor = processor if isinstance(processor, Preprocessor) else Preprocessor.from_processor(processor)
        self.model_config = ModelGenerationConfig.from_model(self.model)
        self.mass = LocationMass(self.preprocessor.location_ids, self.model.device)
        self.builder = RequestBuilder(self.preprocessor, self.model_config, self.config)
        self.stats = Stats(slots=self.config.batch_size or DEFAULT_BATCH_SIZE)
        self.is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Refuse further runs, and end the processes that decode images."""
        self.is_closed = True
        self.builder.close()

    def run(
        self, samples: Iterable[Sample | EngineInput], generation: GenerationConfig | None = None
    ) -> Iterator[Prediction]:
        """Predict every sample, in order; a sample that fails gives a prediction with `error`.

        `generation` holds for all samples that bring no config of their own (default: `EngineConfig.generation`).
        """
        if self.is_closed:
            raise UserError("the engine is closed", "create another `GenerateEngine`")
        return self._run(samples, generation)

    def _run(
        self, samples: Iterable[Sample | EngineInput], generation: GenerationConfig | None
    ) -> Iterator[Prediction]:
        with RequestQueue(self.builder, samples, self.stats.slots, generation) as queue:
            while True:
                with self.stats.measure("read"):
                    batch = list(islice(queue, self.stats.slots))
                if not batch:
                    return
                predictions = self._predict_within_memory([item for item in batch if isinstance(item, Request)])
                for item in batch:
                    prediction = predictions[item] if isinstance(item, Request) else item.prediction
                    if isinstance(item, Request):
                        queue.add_follow_ups(item, prediction)
                    self.stats.count(prediction)
                    with self.stats.measure("write"):
                        yield prediction

    def _predict_within_memory(self, requests: Sequence[Request]) -> dict[Request, Prediction]:
        """Predict one batch, in parts where the device has no memory for it; later batches are no larger."""
        try:
            return self._predict(requests)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self.stats.slots = size = halve_slots(len(requests))
        parts = [requests[first : first + size] for first in range(0, len(requests), size)]
        return {request: each for part in parts for request, each in self._predict_within_memory(part).items()}

    @torch.inference_mode()
    def _predict(self, requests: Sequence[Request]) -> dict[Request, Prediction]:
        """Predict one batch; requests with equal limits and configs go through `generate` together."""
        groups: dict[object, list[Request]] = defaultdict(list)
        for request in requests:
            # Samples are drawn one request at a time, so that each has its own random numbers.
            is_alone = request.generation.do_sample
            groups[request if is_alone else (request.limits, request.generation)].append(request)
        self.stats.slots_in_use = len(requests)
        return {
            request: to_prediction(self.preprocessor, self.model_config, request, completions)
            for group in groups.values()
            for request, completions in zip(group, self._generate(group), strict=True)
        }

    def _generate(self, requests: list[Request]) -> list[list[CompletionOutput]]:
        """Generate `num_return_sequences` sequences for each request."""
        mask_BN, states_BND = self._encode(requests)
        generation = requests[0].generation
        with self.stats.measure("decode"), torch.random.fork_rng(self._devices(), enabled=generation.do_sample):
            if generation.do_sample:
                torch.manual_seed(sample_seed(requests[0].sample, generation.seed))
            sequences = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states_BND),
                attention_mask=mask_BN,
                **self._generate_kwargs(requests[0]),
            )
        rows = sequences.unflatten(0, (len(requests), -1))
        return [[self._to_completion(row, states_BND[n], mask_BN[n]) for row in rows[n]] for n in range(len(requests))]

    def _encode(self, requests: list[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode images and prompts: attention mask (B, N) and states (B, N, D)."""
        model = self.model
        longest = max(len(request.prompt_ids) for request in requests)
        ids_BN = torch.full((len(requests), longest), self.model_config.pad_token_id)
        for row, request in zip(ids_BN, requests, strict=True):
            row[: len(request.prompt_ids)] = torch.tensor(request.prompt_ids)
        lengths_B1 = torch.tensor([[len(request.prompt_ids)] for request in requests])
        mask_BN = (torch.arange(longest) < lengths_B1).to(model.device, torch.long)
        ids_BN = ids_BN.to(model.device)
        with self.stats.measure("vision"):
            bytes_BHWC = torch.stack([request.image_inputs.pixels_HWC for request in requests])
            pixels_BCHW = self.preprocessor.normalize(bytes_BHWC.to(model.device)).to(model.dtype)
            features_BND = model.get_image_features(pixels_BCHW).pooler_output
        with self.stats.measure("encode"):
            embeds_BND = model.get_input_embeddings()(ids_BN)
            is_image = (ids_BN == self.preprocessor.image_token_id).unsqueeze(-1)
            embeds_BND = embeds_BND.masked_scatter(is_image, features_BND.to(embeds_BND.dtype))
            states_BND = model.get_encoder()(inputs_embeds=embeds_BND, attention_mask=mask_BN).last_hidden_state
        return mask_BN, states_BND

    def _generate_kwargs(self, request: Request) -> dict[str, Any]:
        """Return the limits and the config of a request as arguments of `generate`."""
        limits, generation, config = request.limits, request.generation, self.model_config
        return {
            "max_length": limits.max_length,
            "min_length": limits.min_length,
            "no_repeat_ngram_size": limits.no_repeat_ngram_size,
            "num_beams": generation.num_beams,
            "num_return_sequences": generation.num_return_sequences,
            "length_penalty": generation.length_penalty if generation.num_beams > 1 else 1.0,
            "early_stopping": generation.early_stopping if generation.num_beams > 1 else False,
            "repetition_penalty": float(generation.repetition_penalty),
            "forced_bos_token_id": config.forced_bos_token_id,
            "forced_eos_token_id": config.forced_eos_token_id,
            "do_sample": generation.do_sample,
            "remove_invalid_values": generation.do_sample,  # `torch.multinomial` fails at NaN; `to_prediction` finds it
            "temperature": generation.temperature if generation.do_sample else None,
            "top_k": generation.top_k if generation.do_sample else None,
            "top_p": generation.top_p if generation.do_sample else None,
        }

    def _to_completion(
        self, sequence_T: torch.Tensor, states_ND: torch.Tensor, mask_N: torch.Tensor
    ) -> CompletionOutput:
        """Cut one sequence behind its eos, and compute its log-probabilities, all tokens at once."""
        ids = sequence_T[1:].tolist()
        ids = ids[: self.model_config.eos_index(ids)]
        with self.stats.measure("decode"):
            logits_1TV = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states_ND[None]),
                attention_mask=mask_N[None],
                decoder_input_ids=sequence_T[None, : len(ids)],
                use_cache=False,
            ).logits
            logprobs_1TV = logits_1TV.float().log_softmax(-1)
            tokens_1T = sequence_T[None, 1 : len(ids) + 1]
            logprobs_1T = logprobs_1TV.gather(-1, tokens_1T.unsqueeze(-1)).squeeze(-1)
            rows_1T = torch.arange(len(ids), device=tokens_1T.device)[None]
            locations_1TN = self.mass.location_logits(logprobs_1TV)
            logprobs, masses = unpack(self.mass.pack(locations_1TN, rows_1T, tokens_1T, logprobs_1T))
        self.stats.tokens += len(ids)
        return CompletionOutput(ids, logprobs[0], masses[0])

    def _devices(self) -> list[int]:
        return [self.model.device.index or 0] if self.model.device.type == "cuda" else []
