"""How a reply is generated: the settings of a request, the checkpoint's generation config, and the limits both set.

Plain Python without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from florence2.config import DEFAULT_MAX_LENGTH
from florence2.data.sample import Sample
from florence2.errors import CheckpointError, OptionError
from florence2.model.storage.score_calibration import ScoreCalibration
from florence2.model.tasks import OutputType, Task


@dataclass(frozen=True)
class GenerationConfig:
    """How the tokens of one request are chosen.

    `max_length` and `min_length` count caption tokens: the start, bos and eos tokens come on top. A `max_length`
    beyond the model's positions is cut to them.
    """

    max_length: int = DEFAULT_MAX_LENGTH
    """Most caption tokens."""

    num_beams: int = 1
    """Beams of the search; 1 is greedy search or sampling."""

    do_sample: bool = False
    """Sample each token by its probability instead of taking the most likely one."""

    temperature: float = 1.0
    """Divisor of the logits before sampling."""

    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this."""

    top_k: int = 0
    """Sample from this many most likely tokens; 0 is all tokens."""

    no_repeat_ngram_size: int | None = None
    """Forbid n-grams of this size to occur twice; `None` is the checkpoint's size in captions, and 0 elsewhere."""

    seed: int = 0
    """Seed of sampling; every sample has its own stream of random numbers."""

    min_length: int = 0
    """Fewest caption tokens."""

    length_penalty: float = 1.0
    """Exponent of the length by which the score of a beam is divided."""

    early_stopping: bool | Literal["never"] = True
    """When beam search stops: at `num_beams` finished beams, by an estimate (`False`), or when none can improve."""

    repetition_penalty: float = 1.0
    """Factor that makes generated tokens less likely to come again; 1 is none."""

    num_return_sequences: int = 1
    """Sequences returned for each request, the best first."""

    min_score: float = 0.0
    """Remove objects whose score is below this from the text and the answer."""

    def __post_init__(self) -> None:
        """Refuse values that no search can use."""
        require_at_least("max_length", self.max_length, 1)
        require_at_least("num_beams", self.num_beams, 1)
        require_at_least("num_return_sequences", self.num_return_sequences, 1)
        require_at_least("min_length", self.min_length, 0)
        require_at_least("top_k", self.top_k, 0)
        require_at_least("no_repeat_ngram_size", self.no_repeat_ngram_size or 0, 0)
        if self.temperature <= 0:
            raise OptionError(f"`temperature` is {self.temperature}", "pass a number above 0, or remove `do_sample`")
        if not 0 <= self.min_score <= 1:
            raise OptionError(f"`min_score` is {self.min_score}", "pass a number from 0 to 1")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"`top_p` is {self.top_p}", "pass a number above 0 and at most 1")
        if self.repetition_penalty <= 0:
            raise OptionError(f"`repetition_penalty` is {self.repetition_penalty}", "pass a number above 0; 1 is none")
        if self.min_length > self.max_length:
            raise OptionError(
                f"`min_length` {self.min_length} is above `max_length` {self.max_length}", "pass a smaller `min_length`"
            )
        if self.num_return_sequences > self.num_beams and not (self.do_sample and self.num_beams == 1):
            raise OptionError(
                f"`num_return_sequences` {self.num_return_sequences} is above `num_beams` {self.num_beams}",
                f"pass `num_beams={self.num_return_sequences}`, or `do_sample` with one beam",
            )

    @property
    def width(self) -> int:
        """Count the rows that a request needs in its slot: beams, or samples."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences

    def search_config(self) -> GenerationConfig:
        """Reset what a search does not read: what each slot or its output has, and what other searches read."""
        default = GenerationConfig()
        unread: dict[str, Any] = {
            "max_length": default.max_length,
            "min_length": default.min_length,
            "seed": default.seed,
            "min_score": default.min_score,
        }
        if not self.do_sample:
            unread |= {"temperature": default.temperature, "top_k": default.top_k, "top_p": default.top_p}
        if self.num_beams > 1:
            unread |= {"num_return_sequences": default.num_return_sequences}
        else:
            unread |= {"length_penalty": default.length_penalty, "early_stopping": default.early_stopping}
        return replace(self, **unread)


@dataclass(frozen=True)
class LengthLimits:
    """The limits of one reply; the lengths count all tokens, from the start token to eos."""

    min_length: int
    max_length: int
    no_repeat_ngram_size: int


@dataclass(frozen=True)
class ModelGenerationConfig:
    """The generation config of a checkpoint, with the number of its decoder's positions."""

    decoder_start_token_id: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    forced_bos_token_id: int | None
    forced_eos_token_id: int | None
    no_repeat_ngram_size: int
    max_positions: int
    score_calibration: ScoreCalibration | None = None

    @classmethod
    def from_model(cls, model: Any) -> Self:
        """Read a `Florence2ForConditionalGeneration`."""
        generation, text = model.generation_config, model.config.text_config
        return cls(
            decoder_start_token_id=_single_id(generation.decoder_start_token_id, text.decoder_start_token_id),
            bos_token_id=_single_id(generation.bos_token_id, text.bos_token_id),
            eos_token_id=_single_id(generation.eos_token_id, text.eos_token_id),
            pad_token_id=_single_id(generation.pad_token_id, text.pad_token_id),
            forced_bos_token_id=generation.forced_bos_token_id,
            forced_eos_token_id=generation.forced_eos_token_id,
            no_repeat_ngram_size=generation.no_repeat_ngram_size or 0,
            max_positions=int(text.max_position_embeddings),
            score_calibration=getattr(model, "score_calibration", None),
        )

    def length_limits(self, task: Task, generation: GenerationConfig, length: int | None = None) -> LengthLimits:
        """Compute the limits of a reply to a task; `length` forces the number of caption tokens.

        Repeated n-grams are forbidden in captions only: boxes and tables repeat themselves, and replies to a custom
        prompt may.
        """
        max_length, min_length = self.max_length(generation, length), length or generation.min_length
        is_caption = task.output_type is OutputType.TEXT and not task.is_custom
        by_task = self.no_repeat_ngram_size if is_caption else 0
        ngram = by_task if generation.no_repeat_ngram_size is None else generation.no_repeat_ngram_size
        return LengthLimits(
            min_length=min(min_length + 2, max_length - 1) if min_length else 0,
            max_length=max_length,
            no_repeat_ngram_size=ngram,
        )

    def max_length(self, generation: GenerationConfig, length: int | None = None) -> int:
        """Count the tokens of the longest reply, from the start token to eos."""
        longest = min(length or generation.max_length, generation.max_length)
        # Start and bos come on top, and eos where it is forced; the last token is never fed back.
        return min(longest + 2 + (self.forced_eos_token_id is not None), self.max_positions + 1)

    def eos_index(self, ids: Sequence[int]) -> int:
        """Count the tokens behind the start token, up to and with eos."""
        return ids.index(self.eos_token_id) + 1 if self.eos_token_id in ids else len(ids)

    def caption_slice(self, ids: Sequence[int]) -> slice:
        """Slice the caption out of the tokens behind the start token: without bos, eos and all behind it."""
        first = 1 if ids and ids[0] == self.bos_token_id else 0
        return slice(first, self.eos_index(ids) - (self.eos_token_id in ids))

    def sampled_slice(self, ids: Sequence[int], limits: LengthLimits) -> slice:
        """Slice the tokens that the model chose out of those behind the start token: without forced bos and eos."""
        end = self.eos_index(ids)
        is_forced_end = self.forced_eos_token_id is not None and end + 1 == limits.max_length
        return slice(0 if self.forced_bos_token_id is None else 1, end - is_forced_end)


def sample_seed(sample: Sample, seed: int) -> int:
    """Derive the seed of a sample's random numbers; it does not depend on the other samples of a run."""
    name = "\x00".join((str(seed), *sample.key))
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=7).digest())


def require_at_least(name: str, value: float, minimum: float) -> None:
    """Raise a `OptionError` for a setting that is below its minimum."""
    if value < minimum:
        raise OptionError(f"`{name}` is {value}", f"pass {minimum} or more")


def _single_id(*candidates: int | list[int] | None) -> int:
    """Take the first token id that is set; Florence-2 has one id for each purpose."""
    for ids in candidates:
        if isinstance(ids, int):
            return ids
        if ids and len(ids) == 1:
            return int(ids[0])
        if ids:
            raise CheckpointError(
                f"the checkpoint's generation config has {len(ids)} token ids for one purpose", "keep one of them"
            )
    raise CheckpointError(
        "the checkpoint's generation config lacks a token id", "add start, bos, eos and pad token ids"
    )
