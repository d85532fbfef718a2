"""How the engine searches and how it works: plain settings, no torch, no model.

The flags of `config` are the common part; what is added here is for callers from Python. `Stats` is what a run
says about itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from florence2 import config
from florence2.data.sample import Prediction, Sample
from florence2.errors import UserError


@dataclass(frozen=True)
class GenerationSettings(config.GenerationSettings):
    """How an answer is chosen, token by token.

    `max_length` and `min_length` count caption tokens: the start, bos and eos tokens come on top. A `max_length`
    beyond the model's positions is cut to them.
    """

    min_length: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = True
    repetition_penalty: float = 1.0
    num_return_sequences: int = 1

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
class EngineSettings:
    """How the engine works; none of this changes an answer but `generation` and `exact_pixels`."""

    generation: GenerationSettings = field(default_factory=GenerationSettings)

    batch_size: int | None = None
    """Slots: pictures answered at a time; `None` lets the engine choose by device and memory."""

    num_workers: int = config.SpeedSettings.num_workers
    """Threads that open pictures ahead of the model."""

    exact_pixels: bool = config.SpeedSettings.exact_pixels
    """Decode JPEGs in full, so that pixels equal transformers' to the bit."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the vision tower: always, never, or once the run is known to be long enough to pay for it."""

    lengths: Callable[[Sample], int] | None = None
    """Force the number of caption tokens of each sample: for measurements with random weights."""

    def __post_init__(self) -> None:
        """Refuse empty batches and negative workers."""
        _at_least("batch_size", 1 if self.batch_size is None else self.batch_size, 1)
        _at_least("num_workers", self.num_workers, 0)


@dataclass
class Stats:
    """Where the time of a run went, and what came out of it.

    `seconds` has the keys read (waiting for pictures; most reading is hidden behind the rest), vision, encode,
    decode and write (everything the caller did between two predictions).
    """

    slots: int = 0
    slots_in_use: int = 0
    pictures: int = 0
    errors: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def count(self, prediction: Prediction) -> None:
        """Add one prediction to the sums."""
        self.pictures += 1
        self.errors += prediction.error is not None

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time of a block to its part of the whole."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"`{name}` is {value}", f"give {least} or more")
