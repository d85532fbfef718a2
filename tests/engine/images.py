"""Samples for the engine's tests: noise with a coarse pattern, so that pictures differ for a tiny model."""

from pathlib import Path

import numpy as np
from PIL import Image

from florence2.data.sample import Sample

TASKS = (
    "caption",
    "od",
    "what is this?",
    "ocr_with_region",
    "more_detailed_caption",
    "region_proposal",
    "describe the colours of everything in it",
)


def image(seed: int, size: tuple[int, int] = (70, 50)) -> Image.Image:
    """Draw a few coloured squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize(size, Image.Resampling.NEAREST)


def samples(count: int, tasks: tuple[str, ...] = TASKS, first: int = 0) -> list[Sample]:
    """Ask the tasks in turn, each about a picture of its own."""
    return [Sample(id=f"{n}.png", image=image(n), task=tasks[n % len(tasks)]) for n in range(first, first + count)]


def missing(name: str = "gone.jpg") -> Sample:
    """Ask about a picture that is not there."""
    return Sample(id=name, image=Path("/nowhere") / name, task="caption")
