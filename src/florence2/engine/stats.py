"""Statistics of a run: counts of images and tokens, and the time of each stage on the host or the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from florence2.data.sample import Prediction


@dataclass
class Stats:
    """The sums of a run; `num_compiling` counts engines whose vision tower is being compiled in the background.

    `seconds` has a key for each stage: read (waiting for images; most reading is hidden behind the other stages),
    vision, encode, decode and write (decoding tokens into predictions, and the caller's work between two of them).
    On a GPU vision, encode and decode are device time.
    """

    slots: int = 0
    slots_in_use: int = 0
    images: int = 0
    errors: int = 0
    tokens: int = 0
    steps: int = 0
    num_compiling: int = 0
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
        for stage, seconds in other.seconds.items():
            self.add_seconds(stage, seconds)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add time to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the host time of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(stage, time.perf_counter() - start)


class Timer:
    """Adds the time of work on a device to the stages of a run.

    A GPU runs behind the host: its time is measured by events, which are read when they have passed.
    """

    def __init__(self, device: torch.device, stats: Stats) -> None:
        self._device, self._stats = device, stats
        self._spans: deque[tuple[str, Any, Any]] = deque()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage: on a CPU at once, on a GPU by a later `flush`."""
        if self._device.type != "cuda":
            with self._stats.measure(stage):
                yield
            return
        stream = torch.cuda.current_stream(self._device)
        start, end = stream.record_event(_timing_event()), _timing_event()
        yield
        self._spans.append((stage, start, stream.record_event(end)))

    def flush(self, *, wait: bool = False) -> None:
        """Add the time of all finished work; `wait` waits for the rest."""
        while self._spans and (wait or self._spans[0][2].query()):
            stage, start, end = self._spans.popleft()
            end.synchronize()
            self._stats.add_seconds(stage, start.elapsed_time(end) / 1000)


def _timing_event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
