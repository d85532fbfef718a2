"""Continuous batching: requests enter and leave the decoding batch independently of each other.

A request takes a free slot as soon as its image is open, gets one token in every step, and leaves when it is done.
Predictions come as they finish, in no order; in float32 they equal those of `generate_engine.py` token for token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint
from typing import Any, Self

import torch

from florence2.cuda_graphs import CudaGraphCache
from florence2.data.sample import Prediction, Sample
from florence2.devices import is_out_of_memory, use_device
from florence2.engine.decoding.batch_state import BatchState, round_up_to_stride
from florence2.engine.decoding.completion_poller import CompletionPoller, PollResult
from florence2.engine.decoding.decoder import Decoder
from florence2.engine.decoding.kv_cache import allocate_slots, halve_slots, max_slots_for_memory
from florence2.engine.decoding.location_mass import LocationMass, unpack
from florence2.engine.decoding.outputs import CompletionOutput, to_prediction
from florence2.engine.decoding.search import MAX_SEARCHES, SearchRegistry
from florence2.engine.encoder.encoder import Encoder
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig, ModelGenerationConfig, sample_seed
from florence2.engine.requests import (
    EngineInput,
    IsActive,
    Request,
    RequestBuilder,
    RequestOutput,
    RequestQueue,
    always_active,
)
from florence2.engine.scheduler import Scheduler
from florence2.engine.stats import Stats, Timer
from florence2.errors import CheckpointError, UserError
from florence2.model.processing import Preprocessor

CPU_MAX_SEQS = 16
GPU_MAX_SEQS, GPU_POLL_INTERVAL = 256, 4
MAX_DECODE_GRAPHS = 1024


class Engine:
    """Predicts samples by continuous batching; `close()` or a `with` block releases its memory on the device."""

    @torch.inference_mode()
    def __init__(self, model: Any, processor: Any, config: EngineConfig | None = None) -> None:
        """Take a model in eval mode with any adapter merged, and its processor or the `Preprocessor` made of it."""
        if hasattr(model, "peft_config"):
            raise CheckpointError(
                "the engine cannot run an adapter that is not merged", "load the model with `merge=True`"
            )
        self.config = config or EngineConfig()
        self.model, self.device = model, model.device
        self.preprocessor = processor if isinstance(processor, Preprocessor) else Preprocessor.from_processor(processor)
        self.model_config = ModelGenerationConfig.from_model(model)
        generation, on_gpu = self.config.generation, self.device.type == "cuda"
        static_shapes = self.device.type != "cpu"  # few shapes, and no waiting for the device
        width, tokens = generation.width, self.model_config.max_length(generation)
        most = GPU_MAX_SEQS if static_shapes else CPU_MAX_SEQS
        slots = self.config.batch_size or max_slots_for_memory(model, width, tokens, most)
        self.decoder, self._slot_shape = Decoder(model), (width, tokens)
        slots, self.cache, self.batch = allocate_slots(self.decoder, slots, width, tokens)
        self.stats = Stats(slots=slots)
        self.timer = Timer(self.device, self.stats)
        self.builder = RequestBuilder(
            self.preprocessor, self.model_config, self.config, check=self.config.check_request, pin_memory=on_gpu
        )
        self.scheduler = Scheduler(slots, static_shapes=static_shapes)
        self.encoder = Encoder(model, self.preprocessor, self.model_config, self.timer)
        self.searches = SearchRegistry(self.model_config, LocationMass(self.preprocessor.location_ids, self.device))
        self.poller = CompletionPoller(GPU_POLL_INTERVAL if static_shapes else 1)
        self.decode_step = CudaGraphCache(self._decode_step, enabled=on_gpu, max_graphs=MAX_DECODE_GRAPHS)
        self.is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the memory on the device, and restore the model's own attention where no other engine patches it."""
        if not self.is_closed:
            self.is_closed = True
            self.timer.flush(wait=True)
            self.builder.close()
            self.encoder.close()
            del self.encoder, self.decoder, self.cache, self.batch, self.decode_step

    def run(
        self, samples: Iterable[Sample | EngineInput], generation: GenerationConfig | None = None
    ) -> Iterator[Prediction]:
        """Predict every sample; a sample that fails gives a prediction with `error`.

        `generation` holds for all samples that bring no config of their own (default: `EngineConfig.generation`).
        """
        return (output.prediction for output in self.outputs(samples, generation))

    def outputs(
        self,
        samples: Iterable[Sample | EngineInput],
        generation: GenerationConfig | None = None,
        is_active: IsActive = always_active,
    ) -> Iterator[RequestOutput]:
        """Predict every sample, and return it with its prediction; a sample that is not active any more is dropped."""
        self._require_open()
        if generation is not None:
            self.config.check_request(generation)
        return self._outputs(samples, generation, is_active)

    def _outputs(
        self, samples: Iterable[Sample | EngineInput], generation: GenerationConfig | None, is_active: IsActive
    ) -> Iterator[RequestOutput]:
        self._require_open()
        self.encoder.prepare(self.config.compile, self.config.expected_samples or length_hint(samples, 0))
        with RequestQueue(self.builder, samples, self.stats.slots, generation, is_active) as queue:
            try:
                while not queue.exhausted or self.scheduler.num_running:
                    for output in self.step(queue):
                        self.stats.count(output.prediction)
                        with self.stats.measure("write"):
                            yield output
            finally:
                self._clear()

    @torch.inference_mode()
    def step(self, queue: RequestQueue) -> list[RequestOutput]:
        """Admit requests, decode one token of every running request, and return what is done."""
        self._require_open()
        with use_device(self.device):
            self._drop_cancelled(queue)
            outputs = self._admit(queue)
            if self.scheduler.num_running:
                outputs += self._decode(queue)
            return outputs

    def _drop_cancelled(self, queue: RequestQueue) -> None:
        """Free the slots of requests that nobody waits for any more."""
        for slot in self.scheduler.drop_cancelled(queue.is_active):
            self.batch.active_S[slot] = False

    def _admit(self, queue: RequestQueue) -> list[RequestOutput]:
        """Prefill free slots with new requests, and return the outputs of samples that failed."""
        size = self.encoder.batch_size
        with self.stats.measure("read"):
            requests, failed = self.scheduler.admit(queue, size)
        try:
            for first in range(0, len(requests), size):
                self._prefill(requests[first : first + size])
            return failed
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self._halve_batch(queue, requests)
        return failed

    def _prefill(self, requests: list[Request]) -> None:
        """Encode a few requests and start them in free slots."""
        states_BND = self.encoder.encode(requests)
        self.stats.num_compiling = int(self.encoder.is_compiling)
        self._forget_idle_searches()
        searches = [self.searches.number_of(request.generation) for request in requests]
        slots = self.scheduler.place(requests, searches)
        with self.timer.measure("encode"):
            lengths = [len(request.prompt_ids) for request in requests]
            self.decoder.prefill_cross_attention(self.cache, slots, states_BND, lengths)
        seeds = [sample_seed(request.sample, request.generation.seed) for request in requests]
        limits = [request.limits for request in requests]
        self.batch.start(slots, limits, seeds, searches, self.model_config)

    def _decode(self, queue: RequestQueue) -> list[RequestOutput]:
        """Decode one token of every running request, and return the outputs of requests that are done."""
        polled = self._try_step()
        if polled is None:
            self._halve_batch(queue)
            return []
        with self.stats.measure("write"):
            self._report_tokens(polled)
            outputs = [self._finish(slot, polled.tables, queue) for slot in polled.done]
        self.timer.flush()
        return outputs

    def _try_step(self) -> PollResult | None:
        """Decode one token, and find the slots that are done; None where the device has no memory for it."""
        plan = self.scheduler.plan_step(round_up_to_stride)
        self.stats.steps += 1
        self.stats.slots_in_use = self.scheduler.num_running
        try:
            with self.timer.measure("decode"):
                for source, target in plan.moves:
                    self.batch.move_slot(source, target)
                    self.cache.move_slot(source, target)
                self.decode_step(plan.slots, plan.tokens, self.cache.encoder_length, *plan.searches)
                return self.poller.poll(self.batch.view(self.stats.slots, plan.tokens), self.scheduler.slots)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _halve_batch(self, queue: RequestQueue, new: Sequence[Request] = ()) -> None:
        """Go on with half of the slots, and start the requests in work again; no prediction depends on the batch."""
        running = [each.request for each in self.scheduler.slots if each is not None]
        queue.put_back([*running, *(request for request in new if request not in running)])
        self.decode_step.reset()
        self.cache.free()
        slots = halve_slots(self.stats.slots)
        self.stats.slots, self.cache, self.batch = allocate_slots(self.decoder, slots, *self._slot_shape)
        self.encoder.halve_batch(self.stats.slots)
        self.scheduler = self.scheduler.with_slots(self.stats.slots)
        self.poller.clear()

    def _decode_step(self, slots: int, tokens: int, _encoder_length: int, *searches: int) -> None:
        """Append one token to each of the first slots, without an operation that makes the host wait."""
        batch = self.batch.view(slots, tokens)
        self.searches.append_tokens(batch, self.decoder.step(self.cache, batch), searches)

    def _report_tokens(self, polled: PollResult) -> None:
        """Pass the tokens so far to running requests that want them; beams may still change theirs."""
        for slot in polled.running:
            running = self.scheduler.slots[slot]
            if running is not None and running.request.on_tokens and running.request.generation.width == 1:
                length = int(polled.tables.length_S[slot])
                ids = polled.tables.tokens_SWT[slot, 0, 1:length].tolist()
                running.request.on_tokens(ids[self.model_config.caption_slice(ids)])

    def _finish(self, slot: int, tables: BatchState, queue: RequestQueue) -> RequestOutput:
        """Read the prediction of a slot that is done, free the slot, and queue the follow-ups."""
        request = self.scheduler.finish(slot)
        count = request.generation.num_return_sequences
        tokens_WT, likelihoods_WT = tables.sequences(slot, request.limits.max_length)
        columns = tokens_WT[:count, 1:].tolist(), *unpack(likelihoods_WT[:count, 1:])
        completions = [CompletionOutput(*row) for row in zip(*columns, strict=True)]
        self.stats.tokens += sum(self.model_config.eos_index(each.ids) for each in completions)
        prediction = to_prediction(self.preprocessor, self.model_config, request, completions)
        queue.add_follow_ups(request, prediction)
        return RequestOutput(request.sample, prediction)

    def _forget_idle_searches(self) -> None:
        """Forget searches that no request uses, and the graphs that hold them, where many were needed by now."""
        if len(self.searches) > MAX_SEARCHES:
            self.searches.drop_all_but(self.scheduler.searches)
            self.decode_step.reset()

    def _require_open(self) -> None:
        if self.is_closed:
            raise UserError("the engine is closed", "create another `Engine`")

    @torch.inference_mode()
    def _clear(self) -> None:
        """Drop unfinished requests, when a run is left early."""
        self.scheduler.clear()
        if not self.is_closed:
            self.batch.active_S.zero_()
