"""How long work takes where it is done: a GPU's is only asked for, so it must say itself when it began and ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from florence2.engine.engine_config import Stats


class Timer:
    """Adds the time of work on a device to the parts of a run."""

    def __init__(self, device: torch.device, stats: Stats) -> None:
        self._device, self._stats = device, stats
        self._spans: deque[tuple[str, Any, Any]] = deque()

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Count the time that the work within takes; that of a GPU is known later, and counted by `settle`."""
        if self._device.type != "cuda":
            with self._stats.measure(what):
                yield
            return
        stream = torch.cuda.current_stream(self._device)
        begin, end = stream.record_event(_mark()), _mark()
        yield
        self._spans.append((what, begin, stream.record_event(end)))

    def flush(self, *, wait: bool = False) -> None:
        """Count the time of work that is done by now, or of all."""
        while self._spans and (wait or self._spans[0][2].query()):
            what, begin, end = self._spans.popleft()
            end.synchronize()
            self._stats.add_seconds(what, begin.elapsed_time(end) / 1000)


def _mark() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
