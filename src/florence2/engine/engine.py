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

from florence2.cuda_graphs import Replay
from florence2.data.sample import Prediction, Sample
from florence2.devices import on
from florence2.engine.decoding.batch_state import Slots, Watch, whole_strides
from florence2.engine.decoding.decoder import Cache, Decoder, fitting_slots
from florence2.engine.decoding.search import search_for
from florence2.engine.encoder.encoder import Encoder
from florence2.engine.engine_config import EngineSettings, Rules, Stats, seed_of
from florence2.engine.outputs import Said, answer
from florence2.engine.requests import Answered, Question, Questions, Wanted, everything
from florence2.engine.timer import Clock
from florence2.errors import UserError
from florence2.model.processing import Processing

CPU_SLOTS = 16
GPU_SLOTS, GPU_LOOKS = 256, 4


class Engine:
    """Answers samples through slots; a context manager, for it holds memory on the device."""

    def __init__(self, model: Any, processor: Any, settings: EngineSettings | None = None) -> None:
        """Take a model in eval mode with any LoRA merged, and its processor or the `Processing` made of it."""
        if hasattr(model, "peft_config"):
            raise UserError("the engine cannot run an adapter that is not merged", "load the model with `merge=True`")
        self.settings = settings or EngineSettings()
        self.model = model
        self.processing = processor if isinstance(processor, Processing) else Processing.of(processor)
        self.rules = Rules.of(model)
        self.search = search_for(self.settings.generation, self.rules)
        self.stats = Stats()

    @torch.inference_mode()
    def __enter__(self) -> Self:
        device, width, longest = self.model.device, self.search.width, self.rules.most(self.settings.generation)
        self.is_static = device.type != "cpu"  # few shapes, and no waiting for the device
        most = GPU_SLOTS if self.is_static else CPU_SLOTS
        count = self.settings.batch_size or fitting_slots(self.model, width, longest, most)
        self.stats = Stats(slots=count)
        self.clock = Clock(device, self.stats)
        self.encoder = Encoder(self.model, self.processing, self.rules, self.clock)
        self.decoder = Decoder(self.model)
        self.cache = Cache(self.decoder, count, width, longest)
        self.slots = Slots.empty(count, width, longest, device)
        self.watch = Watch(GPU_LOOKS if self.is_static else 1)
        self.move = Replay(self._move, records=device.type == "cuda")
        self._questions: list[Question | None] = [None] * count
        self._lengths = [0] * count  # the slots' lengths, known here without asking the device
        return self

    def __exit__(self, *_: object) -> None:
        self.clock.settle(wait=True)
        self.encoder.close()
        del self.encoder, self.decoder, self.cache, self.slots, self.watch, self.move

    def run(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        """Answer every sample; one that cannot be answered gives a prediction with `error`."""
        return (answered.prediction for answered in self.answers(samples))

    def answers(self, samples: Iterable[Sample], wanted: Wanted = everything) -> Iterator[Answered]:
        """Answer every sample, and say which one it was; a sample that is not `wanted` any more is left at once."""
        self.encoder.prepare(self.settings, self.settings.expected or length_hint(samples, 0))
        pinned, slots = self.model.device.type == "cuda", self.stats.slots
        with Questions(self.processing, self.rules, self.settings, samples, slots, wanted, pinned=pinned) as asked:
            try:
                while not asked.exhausted or self.in_use:
                    for answered in self.step(asked):
                        self.stats.count(answered.prediction)
                        with self.stats.timed("write"):
                            yield answered
            finally:
                self._clear()

    @torch.inference_mode()
    def step(self, asked: Questions) -> list[Answered]:
        """Let every slot move by one token, and give what is done."""
        with on(self.model.device):
            return self._step(asked)

    def _step(self, asked: Questions) -> list[Answered]:
        self._leave(asked)
        done = self.admit(asked)
        if self.in_use:
            reach = self._reach()
            with self.clock.timed("decode"):
                self.move(self._count(), reach, self.cache.reach)
                ended, table = self._ended(reach)
            with self.stats.timed("write"):
                done += [self.finish(slot, table, asked) for slot in ended]
            self.clock.settle()
        return done

    def _move(self, count: int, tokens: int, _reach: int) -> None:
        """Let the first slots move by one token, with nothing that makes the host wait."""
        slots = self.slots.part(count, tokens)
        logits_SWV = self.decoder.step(self.cache, slots)
        slots.append(self.search.choose(slots, logits_SWV))

    def admit(self, asked: Questions) -> list[Answered]:
        """Fill free slots with questions whose pictures are open; give back those that failed."""
        taken: list[Question] = []
        failed: list[Answered] = []
        free = [slot for slot, question in enumerate(self._questions) if question is None]
        size = self.encoder.batch
        if self.is_static and self.in_use and self.stats.slots >= 4 * size:
            free = free[: len(free) // size * size]  # a GPU sees several pictures in the time of one
        with self.stats.timed("read"):
            while len(taken) < len(free):
                found = asked.take(wait=not (taken or failed or self.in_use))
                if found is None:
                    break
                if isinstance(found, Question):
                    taken.append(found)
                else:
                    failed.append(found)
        for first in range(0, len(taken), size):
            self._place(free[first : first + size], taken[first : first + size])
        return failed

    def finish(self, slot: int, table: Slots, asked: Questions) -> Answered:
        """Read the answer of a slot that is done from a table, and free it; what the answer leads to is asked next."""
        question = self._questions[slot]
        assert question is not None
        self._questions[slot] = None
        count = self.settings.generation.num_return_sequences
        tokens_WT, logprobs_WT = table.answers(slot, question.limits.most)
        said = [
            Said(ids, odds)
            for ids, odds in zip(tokens_WT[:count, 1:].tolist(), logprobs_WT[:count, 1:].tolist(), strict=True)
        ]
        self.stats.tokens += sum(self.rules.end(each.ids) for each in said)
        prediction = answer(self.processing, self.rules, question, said)
        asked.follow(question, prediction)
        return Answered(question.sample, prediction)

    @property
    def in_use(self) -> int:
        """Count the slots that are being answered."""
        return sum(question is not None for question in self._questions)

    def _leave(self, asked: Questions) -> None:
        """Free the slots of questions that nobody waits for any more."""
        for slot, question in enumerate(self._questions):
            if question is not None and not asked.wanted(question.sample):
                self._questions[slot] = None
                self.slots.busy_S[slot] = False

    def _place(self, free: Sequence[int], questions: Sequence[Question]) -> None:
        """Encode a few questions and put them into slots."""
        states_BND = self.encoder.encode(questions)
        slots = free[: len(questions)]
        with self.clock.timed("encode"):
            self.decoder.look(self.cache, slots, states_BND, [len(question.prompt_ids) for question in questions])
        seeds = [seed_of(question.sample, self.settings.generation.seed) for question in questions]
        self.slots.take(slots, [question.limits for question in questions], self.rules, seeds)
        for slot, question in zip(slots, questions, strict=True):
            self._questions[slot], self._lengths[slot] = question, 1

    def _count(self) -> int:
        """Say how many slots to look at, and move into them what lies behind; a static device knows few counts."""
        in_use = self.in_use
        count = min(2 ** (in_use - 1).bit_length(), self.stats.slots) if self.is_static else in_use
        holes = [slot for slot in range(count) if self._questions[slot] is None]
        behind = [slot for slot in range(count, len(self._questions)) if self._questions[slot] is not None]
        for source, target in zip(behind, holes, strict=False):
            self.slots.move(source, target)
            self.cache.move(source, target)
            self._questions[target], self._lengths[target] = self._questions[source], self._lengths[source]
            self._questions[source] = None
        self.stats.steps += 1
        self.stats.slots_in_use = in_use
        return count

    def _reach(self) -> int:
        """Say how many tokens to look at: one more than the longest answer has."""
        longest = max(length for length, question in zip(self._lengths, self._questions, strict=True) if question)
        return whole_strides(longest + 1)

    def _ended(self, reach: int) -> tuple[list[int], Slots]:
        for slot, question in enumerate(self._questions):
            if question is not None:
                self._lengths[slot] = min(self._lengths[slot] + 1, question.limits.most)
        return self.watch.done(self.slots.part(self.stats.slots, reach), self._questions)

    @torch.inference_mode()
    def _clear(self) -> None:
        """Forget what was not finished, when a run is left early."""
        self._questions = [None] * self.stats.slots
        self.slots.busy_S.zero_()
