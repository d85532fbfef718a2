"""The slow engine that is right by definition: transformers' `generate` in batches, behind the engine's signature.

The engine is tested against it, token for token; only what they draw in sampling differs, for each has streams of
random numbers of its own. Results come in the order of the samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

import torch
from transformers.modeling_outputs import BaseModelOutput

from florence2.data.sample import Prediction, Sample
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import LengthLimits, ModelGenerationConfig, sample_seed
from florence2.engine.outputs import CompletionOutput, to_prediction
from florence2.engine.requests import Request, RequestQueue
from florence2.engine.stats import Stats
from florence2.model.processing import Preprocessor

DEFAULT_BATCH_SIZE = 8


class GenerateEngine:
    """Answers samples with transformers' `generate`, `batch_size` at a time."""

    def __init__(self, model: Any, processor: Any, settings: EngineConfig | None = None) -> None:
        """Take a model in eval mode, and its processor or the `Processing` made of it."""
        self.settings = settings or EngineConfig()
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.preprocessor = processor if isinstance(processor, Preprocessor) else Preprocessor.from_processor(processor)
        self.rules = ModelGenerationConfig.from_model(self.model)
        self.stats = Stats(slots=self.settings.batch_size or DEFAULT_BATCH_SIZE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        """Answer every sample, in order; one that cannot be answered gives a prediction with `error`."""
        with RequestQueue(self.preprocessor, self.rules, self.settings, samples, ahead=self.stats.slots) as asked:
            while True:
                with self.stats.measure("read"):
                    batch = list(islice(asked, self.stats.slots))
                if not batch:
                    return
                answers = self._answers([each for each in batch if isinstance(each, Request)])
                for each in batch:
                    prediction = answers[each] if isinstance(each, Request) else each.prediction
                    if isinstance(each, Request):
                        asked.add_follow_ups(each, prediction)
                    self.stats.count(prediction)
                    with self.stats.measure("write"):
                        yield prediction

    @torch.inference_mode()
    def _answers(self, questions: Sequence[Request]) -> dict[Request, Prediction]:
        """Answer the questions of one batch; those with the same limits go through `generate` together."""
        groups: dict[object, list[Request]] = defaultdict(list)
        for question in questions:
            # Samples draw one by one, so that each has its own stream of random numbers.
            groups[question if self.settings.generation.do_sample else question.limits].append(question)
        self.stats.slots_in_use = len(questions)
        return {
            question: to_prediction(self.preprocessor, self.rules, question, sequences)
            for group in groups.values()
            for question, sequences in zip(group, self._generate(group), strict=True)
        }

    def _generate(self, questions: list[Request]) -> list[list[CompletionOutput]]:
        """Give `num_return_sequences` sequences for each question."""
        mask_BN, states_BND = self._encode(questions)
        limits, settings = questions[0].limits, self.settings.generation
        with self.stats.measure("decode"), torch.random.fork_rng(self._devices(), enabled=settings.do_sample):
            if settings.do_sample:
                torch.manual_seed(sample_seed(questions[0].sample, settings.seed))
            sequences = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states_BND),
                attention_mask=mask_BN,
                **self._generate_kwargs(limits),
            )
        rows = sequences.unflatten(0, (len(questions), -1))
        return [[self._to_completion(row, states_BND[n], mask_BN[n]) for row in rows[n]] for n in range(len(questions))]

    def _encode(self, questions: list[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run pictures and prompts through the encoder: attention mask (B, N) and states (B, N, D)."""
        model = self.model
        longest = max(len(question.prompt_ids) for question in questions)
        ids_BN = torch.full((len(questions), longest), self.rules.pad_token_id)
        for row, question in zip(ids_BN, questions, strict=True):
            row[: len(question.prompt_ids)] = torch.tensor(question.prompt_ids)
        lengths_B1 = torch.tensor([[len(question.prompt_ids)] for question in questions])
        mask_BN = (torch.arange(longest) < lengths_B1).to(model.device, torch.long)
        ids_BN = ids_BN.to(model.device)
        with self.stats.measure("vision"):
            bytes_BHWC = torch.stack([question.image_inputs.pixels_HWC for question in questions])
            pixels_BCHW = self.preprocessor.normalize(bytes_BHWC.to(model.device)).to(model.dtype)
            features_BND = model.get_image_features(pixels_BCHW).pooler_output
        with self.stats.measure("encode"):
            embeds_BND = model.get_input_embeddings()(ids_BN)
            is_image = (ids_BN == self.preprocessor.image_token_id).unsqueeze(-1)
            embeds_BND = embeds_BND.masked_scatter(is_image, features_BND.to(embeds_BND.dtype))
            states_BND = model.get_encoder()(inputs_embeds=embeds_BND, attention_mask=mask_BN).last_hidden_state
        return mask_BN, states_BND

    def _generate_kwargs(self, limits: LengthLimits) -> dict[str, Any]:
        """Word the settings as arguments of `generate`."""
        settings, rules = self.settings.generation, self.rules
        return {
            "max_length": limits.max_length,
            "min_length": limits.min_length,
            "no_repeat_ngram_size": limits.no_repeat_ngram_size,
            "num_beams": settings.num_beams,
            "num_return_sequences": settings.num_return_sequences,
            "length_penalty": settings.length_penalty if settings.num_beams > 1 else 1.0,
            "early_stopping": settings.early_stopping if settings.num_beams > 1 else False,
            "repetition_penalty": float(settings.repetition_penalty),
            "forced_bos_token_id": rules.forced_bos_token_id,
            "forced_eos_token_id": rules.forced_eos_token_id,
            "do_sample": settings.do_sample,
            "temperature": settings.temperature if settings.do_sample else None,
            "top_k": settings.top_k if settings.do_sample else None,
            "top_p": settings.top_p if settings.do_sample else None,
        }

    def _to_completion(
        self, sequence_T: torch.Tensor, states_ND: torch.Tensor, mask_N: torch.Tensor
    ) -> CompletionOutput:
        """Cut one sequence behind its eos and look its log-probabilities up, all tokens at once."""
        ids = sequence_T[1:].tolist()
        ids = ids[: self.rules.eos_index(ids)]
        with self.stats.measure("decode"):
            logits_1TV = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states_ND[None]),
                attention_mask=mask_N[None],
                decoder_input_ids=sequence_T[None, : len(ids)],
                use_cache=False,
            ).logits
            logprobs_TV = logits_1TV[0].float().log_softmax(-1)
            chosen_T = logprobs_TV.gather(-1, sequence_T[1 : len(ids) + 1, None]).squeeze(-1)
        self.stats.tokens += len(ids)
        return CompletionOutput(ids, chosen_T.tolist())

    def _devices(self) -> list[int]:
        return [self.model.device.index or 0] if self.model.device.type == "cuda" else []
