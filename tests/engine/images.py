"""Samples of the engine's tests: coarse random patterns, which a tiny model can tell apart."""

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
    """Make an image of a few random colours."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize(size, Image.Resampling.NEAREST)


def samples(count: int, tasks: tuple[str, ...] = TASKS, first: int = 0) -> list[Sample]:
    """Make samples of the tasks in turn, each with an image of its own."""
    return [Sample(id=f"{n}.png", image=image(n), task=tasks[n % len(tasks)]) for n in range(first, first + count)]


def missing(name: str = "gone.jpg") -> Sample:
    """Make a sample whose image does not exist."""
    return Sample(id=name, image=Path("/nowhere") / name, task="caption")
