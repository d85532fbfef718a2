"""How the engine works: slots, threads, compiling, and the default generation config of its requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from florence2.config import DEFAULT_NUM_WORKERS
from florence2.data.sample import Sample
from florence2.engine.generation_config import GenerationConfig, require_at_least
from florence2.errors import OptionError


@dataclass(frozen=True)
class EngineConfig:
    """How the engine works; only `generation` and `full_decode` change predictions."""

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """The generation config of requests that bring none; its beams and `max_length` are the most a request may have."""

    batch_size: int | None = None
    """Slots: requests that are decoded at a time; `None` lets the engine choose by device and memory."""

    num_workers: int = DEFAULT_NUM_WORKERS
    """Threads that open images ahead of the model."""

    image_timeout: float = 60.0
    """Seconds in which an image must be open; one that takes longer is an error, and its thread is replaced."""

    full_decode: bool = False
    """Decode JPEGs in full, so that pixels equal those of transformers to the last bit."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the vision tower: always, never, or on a GPU when the run is known to be long enough to pay for it."""

    expected_samples: int | None = None
    """Number of samples, where the iterable does not tell it; `compile="auto"` decides by it."""

    forced_lengths: Callable[[Sample], int] | None = None
    """Force the number of caption tokens of each sample: for measurements with random weights."""

    def __post_init__(self) -> None:
        """Refuse empty batches and negative workers."""
        require_at_least("batch_size", 1 if self.batch_size is None else self.batch_size, 1)
        require_at_least("num_workers", self.num_workers, 0)
        require_at_least("image_timeout", self.image_timeout, 0.001)

    def check_request(self, generation: GenerationConfig) -> None:
        """Refuse a request that needs more rows or tokens than the engine's slots have."""
        if generation.width > self.generation.width:
            name = "num_beams" if generation.num_beams > 1 else "num_return_sequences"
            raise OptionError(
                f"`{name}` {generation.width} of a request is above the {self.generation.width} of the engine",
                f"make the engine with `EngineConfig(generation=GenerationConfig({name}={generation.width}))`",
            )
        if generation.max_length > self.generation.max_length:
            length = generation.max_length
            raise OptionError(
                f"`max_length` {length} of a request is above the {self.generation.max_length} of the engine",
                f"make the engine with `EngineConfig(generation=GenerationConfig(max_length={length}))`",
            )
