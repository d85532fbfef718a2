"""How the engine works: slots, threads, compiling, and the default generation config of its requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from florence2.config import DEFAULT_IMAGE_WORKERS, DEFAULT_NUM_WORKERS, ImageWorkers
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
    """Number of images that are opened at a time, ahead of the model."""

    image_workers: ImageWorkers = DEFAULT_IMAGE_WORKERS
    """Who decodes images: `processes` survive a decoder that crashes or takes too much memory, `threads` do not."""

    image_timeout: float = 60.0
    """Seconds of processor time in which an image must be decoded, and five times as many by the clock; one that takes
    longer is an error, and its worker is replaced."""

    image_memory: float = 4.0
    """GiB that a decoder process may take, where the system can limit it; an image that needs more is an error."""

    full_decode: bool = False
    """Decode JPEGs in full, so that pixels equal those of transformers to the last bit."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the vision tower in the background: always, never, or on a GPU if the run is long enough to repay it."""

    expected_samples: int | None = None
    """Number of samples, where the iterable does not tell it; `compile="auto"` decides by it."""

    forced_lengths: Callable[[Sample], int] | None = None
    """Force the number of caption tokens of each sample: for measurements with random weights."""

    def __post_init__(self) -> None:
        """Refuse empty batches and negative workers."""
        require_at_least("batch_size", 1 if self.batch_size is None else self.batch_size, 1)
        require_at_least("num_workers", self.num_workers, 0)
        require_at_least("image_timeout", self.image_timeout, 0.001)
        require_at_least("image_memory", self.image_memory, 0.1)
        if self.image_workers not in get_args(ImageWorkers):
            raise OptionError(f"`image_workers` is `{self.image_workers}`", "pass `processes` or `threads`")

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
