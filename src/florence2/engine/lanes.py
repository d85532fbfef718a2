"""Two lanes of one GPU: in front the slots move token by token, beside them new pictures are looked at.

A step of the slots moves many bytes and computes little, a look is the other way round: together they take less than
one after the other. The front lane goes first wherever both want the same. Other devices have no lanes, and all work
is done in the order in which it is asked for. Knows nothing of what the work is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from florence2.engine.options import Stats


class Lanes:
    """The streams of a device; work that is asked for within `front()` or `side()` goes there."""

    def __init__(self, device: torch.device, stats: Stats) -> None:
        self._stats = stats
        self._spans: deque[tuple[str, Any, Any]] = deque()
        self._front: torch.cuda.Stream | None = None
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            new: Any = torch.cuda.Stream
            self._front, self._side = new(device, priority=-1), new(device)
            for lane in (self._front, self._side):
                lane.wait_stream(torch.cuda.current_stream(device))

    def front(self) -> AbstractContextManager[Any]:
        """Where the slots move."""
        return torch.cuda.stream(self._front) if self._front else nullcontext()

    def side(self) -> AbstractContextManager[Any]:
        """Where pictures are looked at."""
        return torch.cuda.stream(self._side) if self._side else nullcontext()

    def meet(self) -> None:
        """Let each lane wait for what the other was asked for so far."""
        if self._front and self._side:
            self._front.wait_stream(self._side)
            self._side.wait_stream(self._front)

    def mark(self) -> torch.cuda.Event | None:
        """Note where the side lane has come to; None where there are no lanes."""
        return self._side.record_event() if self._side else None

    def join(self, mark: torch.cuda.Event | None) -> None:
        """Let the front lane wait for a mark of the side lane."""
        if self._front and mark:
            self._front.wait_event(mark)

    def finish(self) -> None:
        """Wait until all work is done."""
        if self._front and self._side:
            self._front.synchronize()
            self._side.synchronize()
        self.settle()

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the time that the work within takes; that of a GPU is known later, and counted by `settle`."""
        if self._front is None:
            with self._stats.timed(what):
                yield
            return
        lane = torch.cuda.current_stream(self._front.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(lane)
        yield
        end.record(lane)
        self._spans.append((what, begin, end))

    def settle(self) -> None:
        """Count the time of work that is done by now."""
        while self._spans and self._spans[0][2].query():
            what, begin, end = self._spans.popleft()
            self._stats.spend(what, begin.elapsed_time(end) / 1000)
