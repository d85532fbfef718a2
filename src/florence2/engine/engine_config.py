"""How the engine searches and works: settings, the rules of a checkpoint, and the limits both put on one answer.

Plain Python, no torch. The flags of `config` are the common part of the settings; what is added here is for callers
from Python. `Stats` is what a run says about itself.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from florence2 import config
from florence2.data.sample import Prediction, Sample
from florence2.errors import UserError
from florence2.model.tasks import OutputType, Task
from florence2.settings_io import parse_options, setting_names, settings_to_dict


@dataclass(frozen=True)
class GenerationConfig(config.GenerationSettings):
    """How an answer is chosen, token by token.

    `max_length` and `min_length` count caption tokens: the start, bos and eos tokens come on top. A `max_length`
    beyond the model's positions is cut to them.
    """

    min_length: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = True
    repetition_penalty: float = 1.0
    num_return_sequences: int = 1

    @classmethod
    def of(cls, flags: config.GenerationSettings) -> Self:
        """Take the flags, and what came through the door `--generation_args`; unknown keys are refused by name."""
        given = settings_to_dict(flags)
        more = parse_options("--generation_args", given.pop("generation_args"), setting_names(cls))
        for name, value in more.items():
            if name in given or name == "generation_args":
                raise UserError(f"`--generation_args {name}` has a flag of its own", f"pass `--{name}`")
            if not _fits(value, cls.__dataclass_fields__[name].default, is_stopping=name == "early_stopping"):
                raise UserError(
                    f"`--generation_args {name}={value}` is no value for it", "see `florence2 predict --help`"
                )
        return cls(**given, **more)

    def __post_init__(self) -> None:
        """Refuse what no search can do."""
        _at_least("max_length", self.max_length, 1)
        _at_least("num_beams", self.num_beams, 1)
        _at_least("num_return_sequences", self.num_return_sequences, 1)
        _at_least("min_length", self.min_length, 0)
        _at_least("top_k", self.top_k, 0)
        _at_least("no_repeat_ngram_size", self.no_repeat_ngram_size or 0, 0)
        if self.temperature <= 0:
            raise UserError(f"`temperature` is {self.temperature}", "give a number above 0, or leave out `do_sample`")
        if not 0 < self.top_p <= 1:
            raise UserError(f"`top_p` is {self.top_p}", "give a number above 0 and not above 1")
        if self.repetition_penalty <= 0:
            raise UserError(f"`repetition_penalty` is {self.repetition_penalty}", "give a number above 0; 1 is none")
        if self.min_length > self.max_length:
            raise UserError(
                f"`min_length` {self.min_length} is above `max_length` {self.max_length}", "make it smaller"
            )
        if self.num_return_sequences > self.num_beams and not (self.do_sample and self.num_beams == 1):
            raise UserError(
                f"{self.num_return_sequences} answers cannot come from {self.num_beams} beams",
                f"pass `num_beams={self.num_return_sequences}`, or `do_sample` and one beam",
            )


@dataclass(frozen=True)
class EngineConfig:
    """How the engine works; none of this changes an answer but `generation` and `exact_pixels`."""

    generation: GenerationConfig = field(default_factory=GenerationConfig)

    batch_size: int | None = None
    """Slots: pictures answered at a time; `None` lets the engine choose by device and memory."""

    num_workers: int = config.SpeedSettings.num_workers
    """Threads that open pictures ahead of the model."""

    full_decode: bool = config.SpeedSettings.full_decode
    """Decode JPEGs in full, so that pixels equal transformers' to the bit."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the vision tower: always, never, or once the run is known to be long enough to pay for it."""

    expected_samples: int | None = None
    """How many samples there will be, where they do not say it themselves: what `compile="auto"` goes by."""

    forced_lengths: Callable[[Sample], int] | None = None
    """Force the number of caption tokens of each sample: for measurements with random weights."""

    def __post_init__(self) -> None:
        """Refuse empty batches and negative workers."""
        _at_least("batch_size", 1 if self.batch_size is None else self.batch_size, 1)
        _at_least("num_workers", self.num_workers, 0)


@dataclass(frozen=True)
class LengthLimits:
    """What bounds one answer; `least` and `most` count all tokens, from the start token to eos."""

    min_length: int
    max_length: int
    no_repeat_ngram_size: int


@dataclass(frozen=True)
class ModelGenerationConfig:
    """What a checkpoint says about generation, and how many positions its decoder has."""

    decoder_start_token_id: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    forced_bos_token_id: int | None
    forced_eos_token_id: int | None
    no_repeat_ngram_size: int
    max_positions: int

    @classmethod
    def from_model(cls, model: Any) -> Self:
        """Read a `Florence2ForConditionalGeneration`."""
        said, text = model.generation_config, model.config.text_config
        return cls(
            decoder_start_token_id=_first(said.decoder_start_token_id, text.decoder_start_token_id),
            bos_token_id=_first(said.bos_token_id, text.bos_token_id),
            eos_token_id=_first(said.eos_token_id, text.eos_token_id),
            pad_token_id=_first(said.pad_token_id, text.pad_token_id),
            forced_bos_token_id=said.forced_bos_token_id,
            forced_eos_token_id=said.forced_eos_token_id,
            no_repeat_ngram_size=said.no_repeat_ngram_size or 0,
            max_positions=int(text.max_position_embeddings),
        )

    def length_limits(self, task: Task, settings: GenerationConfig, length: int | None = None) -> LengthLimits:
        """Bound the answer to a task; `length` forces the number of caption tokens.

        Repeated n-grams are forbidden in captions alone: boxes and tables repeat themselves, and so may whatever a
        prompt of the user's own asks for.
        """
        most, shortest = self.max_length(settings, length), length or settings.min_length
        is_caption = task.output_type is OutputType.TEXT and not task.is_custom
        by_task = self.no_repeat_ngram_size if is_caption else 0
        ngram = by_task if settings.no_repeat_ngram_size is None else settings.no_repeat_ngram_size
        return LengthLimits(
            min_length=min(shortest + 2, most - 1) if shortest else 0, max_length=most, no_repeat_ngram_size=ngram
        )

    def max_length(self, settings: GenerationConfig, length: int | None = None) -> int:
        """Count the tokens of the longest answer, from the start token to eos."""
        longest = min(length or settings.max_length, settings.max_length)
        # Start and bos come on top, and eos where it is forced; the last token is never fed back.
        return min(longest + 2 + (self.forced_eos_token_id is not None), self.max_positions + 1)

    def eos_index(self, ids: Sequence[int]) -> int:
        """Count the tokens behind the start token, up to eos."""
        return ids.index(self.eos_token_id) + 1 if self.eos_token_id in ids else len(ids)

    def caption_slice(self, ids: Sequence[int]) -> slice:
        """Say which of the tokens behind the start token are words: neither bos, nor eos and all behind it."""
        first = 1 if ids and ids[0] == self.bos_token_id else 0
        return slice(first, self.eos_index(ids) - (self.eos_token_id in ids))

    def sampled_slice(self, ids: Sequence[int], limits: LengthLimits) -> slice:
        """Say which of the tokens behind the start token were the model's own choice."""
        end = self.eos_index(ids)
        is_forced_end = self.forced_eos_token_id is not None and end + 1 == limits.max_length
        return slice(0 if self.forced_bos_token_id is None else 1, end - is_forced_end)


@dataclass
class Stats:
    """Where the time of a run went, and what came out of it.

    `seconds` has the keys read (waiting for pictures; most reading is hidden behind the rest), vision, encode,
    decode and write (making predictions of tokens, and everything the caller did between two of them). Vision, encode
    and decode on a GPU are its own time.
    """

    slots: int = 0
    slots_in_use: int = 0
    images: int = 0
    errors: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def count(self, prediction: Prediction) -> None:
        """Add one prediction to the sums."""
        self.images += 1
        self.errors += prediction.error is not None

    def add(self, other: Stats) -> None:
        """Add the sums of another engine."""
        for item in fields(self):
            if item.name != "seconds":
                setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
        for what, spent in other.seconds.items():
            self.add_seconds(what, spent)

    def add_seconds(self, what: str, seconds: float) -> None:
        """Add time to its part of the whole."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Add the time of a block to its part of the whole."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(what, time.perf_counter() - start)


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


def _fits(value: Any, default: Any, *, is_stopping: bool) -> bool:
    """Tell whether a value that was read from words is of its setting's kind."""
    if is_stopping:
        return isinstance(value, bool) or value == "never"
    kinds = (int, float) if isinstance(default, float) else (int,)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"`{name}` is {value}", f"give {least} or more")
