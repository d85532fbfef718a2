"""Pictures by the thousand: slots that never wait for each other.

A question takes a free slot as soon as its picture is open, moves by one token with all others, and leaves when it is
done. Answers come out as they finish, in no order; token for token they are those of `reference.py` in float32.
Knows no files: samples in, predictions out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint
from typing import Any, Self

import torch

from florence2.cuda_graphs import CudaGraphCache
from florence2.data.sample import Prediction, Sample
from florence2.devices import use_device
from florence2.engine.decoding.batch_state import BatchState, CompletionPoller, round_up_to_stride
from florence2.engine.decoding.decoder import Decoder, KVCache, max_slots_for_memory
from florence2.engine.decoding.search import search_for
from florence2.engine.encoder.encoder import Encoder
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import ModelGenerationConfig, sample_seed
from florence2.engine.outputs import CompletionOutput, to_prediction
from florence2.engine.requests import IsActive, Request, RequestOutput, RequestQueue, always_active
from florence2.engine.stats import Stats, Timer
from florence2.errors import UserError
from florence2.model.processing import Preprocessor

CPU_MAX_SEQS = 16
GPU_MAX_SEQS, GPU_POLL_INTERVAL = 256, 4


class Engine:
    """Answers samples through slots; a context manager, for it holds memory on the device."""

    def __init__(self, model: Any, processor: Any, settings: EngineConfig | None = None) -> None:
        """Take a model in eval mode with any LoRA merged, and its processor or the `Processing` made of it."""
        if hasattr(model, "peft_config"):
            raise UserError("the engine cannot run an adapter that is not merged", "load the model with `merge=True`")
        self.settings = settings or EngineConfig()
        self.model = model
        self.preprocessor = processor if isinstance(processor, Preprocessor) else Preprocessor.from_processor(processor)
        self.model_config = ModelGenerationConfig.from_model(model)
        self.search = search_for(self.settings.generation, self.model_config)
        self.stats = Stats()

    @torch.inference_mode()
    def __enter__(self) -> Self:
        device, width, longest = (
            self.model.device,
            self.search.width,
            self.model_config.max_length(self.settings.generation),
        )
        self.uses_static_shapes = device.type != "cpu"  # few shapes, and no waiting for the device
        most = GPU_MAX_SEQS if self.uses_static_shapes else CPU_MAX_SEQS
        count = self.settings.batch_size or max_slots_for_memory(self.model, width, longest, most)
        self.stats = Stats(slots=count)
        self.clock = Timer(device, self.stats)
        self.encoder = Encoder(self.model, self.preprocessor, self.model_config, self.clock)
        self.decoder = Decoder(self.model)
        self.cache = KVCache(self.decoder, count, width, longest)
        self.slots = BatchState.empty(count, width, longest, device)
        self.watch = CompletionPoller(GPU_POLL_INTERVAL if self.uses_static_shapes else 1)
        self.decode_step = CudaGraphCache(self._decode_step, enabled=device.type == "cuda")
        self._questions: list[Request | None] = [None] * count
        self._lengths = [0] * count  # the slots' lengths, known here without asking the device
        return self

    def __exit__(self, *_: object) -> None:
        self.clock.flush(wait=True)
        self.encoder.close()
        del self.encoder, self.decoder, self.cache, self.slots, self.watch, self.decode_step

    def run(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        """Answer every sample; one that cannot be answered gives a prediction with `error`."""
        return (answered.prediction for answered in self.outputs(samples))

    def outputs(self, samples: Iterable[Sample], wanted: IsActive = always_active) -> Iterator[RequestOutput]:
        """Answer every sample, and say which one it was; a sample that is not `wanted` any more is left at once."""
        self.encoder.prepare(self.settings, self.settings.expected_samples or length_hint(samples, 0))
        pinned, slots = self.model.device.type == "cuda", self.stats.slots
        with RequestQueue(
            self.preprocessor, self.model_config, self.settings, samples, slots, wanted, pinned=pinned
        ) as asked:
            try:
                while not asked.exhausted or self.in_use:
                    for answered in self.step(asked):
                        self.stats.count(answered.prediction)
                        with self.stats.measure("write"):
                            yield answered
            finally:
                self._clear()

    @torch.inference_mode()
    def step(self, asked: RequestQueue) -> list[RequestOutput]:
        """Let every slot move by one token, and give what is done."""
        with use_device(self.model.device):
            return self._step(asked)

    def _step(self, asked: RequestQueue) -> list[RequestOutput]:
        self._drop_cancelled(asked)
        done = self.admit(asked)
        if self.in_use:
            reach = self._attended_length()
            with self.clock.measure("decode"):
                self.decode_step(self._compact(), reach, self.cache.attended_length)
                ended, table = self._ended(reach)
            with self.stats.measure("write"):
                done += [self.finish(slot, table, asked) for slot in ended]
            self.clock.flush()
        return done

    def _decode_step(self, count: int, tokens: int, _reach: int) -> None:
        """Let the first slots move by one token, with nothing that makes the host wait."""
        slots = self.slots.view(count, tokens)
        logits_SWV = self.decoder.step(self.cache, slots)
        slots.append(self.search.choose(slots, logits_SWV))

    def admit(self, asked: RequestQueue) -> list[RequestOutput]:
        """Fill free slots with questions whose pictures are open; give back those that failed."""
        taken: list[Request] = []
        failed: list[RequestOutput] = []
        free = [slot for slot, question in enumerate(self._questions) if question is None]
        size = self.encoder.batch
        if self.uses_static_shapes and self.in_use and self.stats.slots >= 4 * size:
            free = free[: len(free) // size * size]  # a GPU sees several pictures in the time of one
        with self.stats.measure("read"):
            while len(taken) < len(free):
                found = asked.get(wait=not (taken or failed or self.in_use))
                if found is None:
                    break
                if isinstance(found, Request):
                    taken.append(found)
                else:
                    failed.append(found)
        for first in range(0, len(taken), size):
            self._prefill(free[first : first + size], taken[first : first + size])
        return failed

    def finish(self, slot: int, table: BatchState, asked: RequestQueue) -> RequestOutput:
        """Read the answer of a slot that is done from a table, and free it; what the answer leads to is asked next."""
        question = self._questions[slot]
        assert question is not None
        self._questions[slot] = None
        count = self.settings.generation.num_return_sequences
        tokens_WT, logprobs_WT = table.sequences(slot, question.limits.max_length)
        said = [
            CompletionOutput(ids, odds)
            for ids, odds in zip(tokens_WT[:count, 1:].tolist(), logprobs_WT[:count, 1:].tolist(), strict=True)
        ]
        self.stats.tokens += sum(self.model_config.eos_index(each.ids) for each in said)
        prediction = to_prediction(self.preprocessor, self.model_config, question, said)
        asked.add_follow_ups(question, prediction)
        return RequestOutput(question.sample, prediction)

    @property
    def in_use(self) -> int:
        """Count the slots that are being answered."""
        return sum(question is not None for question in self._questions)

    def _drop_cancelled(self, asked: RequestQueue) -> None:
        """Free the slots of questions that nobody waits for any more."""
        for slot, question in enumerate(self._questions):
            if question is not None and not asked.is_active(question.sample):
                self._questions[slot] = None
                self.slots.active_S[slot] = False

    def _prefill(self, free: Sequence[int], questions: Sequence[Request]) -> None:
        """Encode a few questions and put them into slots."""
        states_BND = self.encoder.encode(questions)
        slots = free[: len(questions)]
        with self.clock.measure("encode"):
            self.decoder.prefill_cross_attention(
                self.cache, slots, states_BND, [len(question.prompt_ids) for question in questions]
            )
        seeds = [sample_seed(question.sample, self.settings.generation.seed) for question in questions]
        self.slots.start(slots, [question.limits for question in questions], self.model_config, seeds)
        for slot, question in zip(slots, questions, strict=True):
            self._questions[slot], self._lengths[slot] = question, 1

    def _compact(self) -> int:
        """Say how many slots to look at, and move into them what lies behind; a static device knows few counts."""
        in_use = self.in_use
        count = min(2 ** (in_use - 1).bit_length(), self.stats.slots) if self.uses_static_shapes else in_use
        holes = [slot for slot in range(count) if self._questions[slot] is None]
        behind = [slot for slot in range(count, len(self._questions)) if self._questions[slot] is not None]
        for source, target in zip(behind, holes, strict=False):
            self.slots.move_slot(source, target)
            self.cache.move_slot(source, target)
            self._questions[target], self._lengths[target] = self._questions[source], self._lengths[source]
            self._questions[source] = None
        self.stats.steps += 1
        self.stats.slots_in_use = in_use
        return count

    def _attended_length(self) -> int:
        """Say how many tokens to look at: one more than the longest answer has."""
        longest = max(length for length, question in zip(self._lengths, self._questions, strict=True) if question)
        return round_up_to_stride(longest + 1)

    def _ended(self, reach: int) -> tuple[list[int], BatchState]:
        for slot, question in enumerate(self._questions):
            if question is not None:
                self._lengths[slot] = min(self._lengths[slot] + 1, question.limits.max_length)
        return self.watch.done(self.slots.view(self.stats.slots, reach), self._questions)

    @torch.inference_mode()
    def _clear(self) -> None:
        """Forget what was not finished, when a run is left early."""
        self._questions = [None] * self.stats.slots
        self.slots.active_S.zero_()
