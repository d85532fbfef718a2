"""How the next token is chosen, for every slot at once and on the device.

Knows no pictures, no words and no weights: it gets logits, and what each slot has said so far.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from florence2.data.sample import Sample
from florence2.engine.options import GenerationSettings
from florence2.errors import UserError
from florence2.model.tasks import Answers, Task


@dataclass(frozen=True)
class Limits:
    """What bounds one answer; `least` and `most` count all tokens, from the start token to eos."""

    least: int
    most: int
    ngram: int


@dataclass(frozen=True)
class Rules:
    """What a checkpoint says about generation, and how many positions its decoder has."""

    start: int
    bos: int
    eos: int
    pad: int
    forced_bos: int | None
    forced_eos: int | None
    ngram: int
    positions: int

    @classmethod
    def of(cls, model: Any) -> Self:
        """Read a `Florence2ForConditionalGeneration`."""
        said, text = model.generation_config, model.config.text_config
        return cls(
            start=_first(said.decoder_start_token_id, text.decoder_start_token_id),
            bos=_first(said.bos_token_id, text.bos_token_id),
            eos=_first(said.eos_token_id, text.eos_token_id),
            pad=_first(said.pad_token_id, text.pad_token_id),
            forced_bos=said.forced_bos_token_id,
            forced_eos=said.forced_eos_token_id,
            ngram=said.no_repeat_ngram_size or 0,
            positions=int(text.max_position_embeddings),
        )

    def limits(self, task: Task, settings: GenerationSettings, length: int | None = None) -> Limits:
        """Bound the answer to a task; `length` forces the number of caption tokens.

        Repeated n-grams are forbidden in captions alone: boxes and tables repeat themselves, and so may whatever a
        prompt of the user's own asks for.
        """
        longest, shortest = (length or settings.max_length), (length or settings.min_length)
        # Start and bos come on top, and eos where it is forced; the last token is never fed back.
        most = min(longest + 2 + (self.forced_eos is not None), self.positions + 1)
        is_caption = task.answers is Answers.TEXT and not task.is_free
        by_task = self.ngram if is_caption else 0
        ngram = by_task if settings.no_repeat_ngram_size is None else settings.no_repeat_ngram_size
        return Limits(least=min(shortest + 2, most - 1) if shortest else 0, most=most, ngram=ngram)

    def caption(self, ids: Sequence[int]) -> list[int]:
        """Take bos, and eos with all behind it, off the tokens that follow the start token."""
        end = ids.index(self.eos) if self.eos in ids else len(ids)
        return list(ids[1 if ids and ids[0] == self.bos else 0 : end])

    def chosen(self, ids: Sequence[int], limits: Limits) -> slice:
        """Say which of the tokens behind the start token were the model's own choice."""
        forced_end = self.forced_eos is not None and len(ids) + 1 == limits.most
        return slice(0 if self.forced_bos is None else 1, len(ids) - forced_end)


def seed_of(sample: Sample, seed: int) -> int:
    """Give each sample its own stream of random numbers, wherever in a run it comes."""
    name = "\x00".join((str(seed), *sample.key))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())


def _first(*found: int | list[int] | None) -> int:
    """Take the first that is given; more than one eos token is nothing Florence-2 has."""
    for ids in found:
        if isinstance(ids, int):
            return ids
        if ids and len(ids) == 1:
            return int(ids[0])
        if ids:
            raise UserError(f"the checkpoint's generation config has {len(ids)} ids where one is needed", "keep one")
    raise UserError("the checkpoint's generation config lacks a token id", "add start, bos, eos and pad token ids")
