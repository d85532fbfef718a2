"""Finding the slots that are done and those that still run, without making the host wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from florence2.engine.decoding.batch_state import BatchState


@dataclass(frozen=True, eq=False)
class PollResult:
    """The slots that are known to be done, those that still run, and the tables that hold the tokens of both."""

    done: list[int]
    running: list[int]
    tables: BatchState


class CompletionPoller:
    """Reports which slots are done, and the tables to read their tokens from.

    With an `interval` above 1 it reads a copy that is `interval` steps old, so that no step waits for the device. That
    is exact: a slot that is done stays unchanged, and a slot that another request holds by now is not reported.
    """

    def __init__(self, interval: int) -> None:
        self._interval, self._steps = interval, 0
        self._copy: tuple[BatchState, list[Any], torch.cuda.Event | None] | None = None

    def clear(self) -> None:
        """Forget the copy, whose slots exist no more."""
        self._copy = None

    def poll(self, batch: BatchState, requests: Sequence[Any]) -> PollResult:
        """List the slots whose request is known to be done or to run; between two copies, none is known."""
        self._steps += 1
        if self._interval == 1:
            return _sort_slots(batch, requests, requests)
        if self._steps % self._interval:
            return PollResult([], [], batch)
        previous, self._copy = self._copy, (batch.to_host_async(), list(requests), _event(batch.active_S.device))
        if previous is None:
            return PollResult([], [], batch)
        host, requests_then, event = previous
        if event is not None:
            event.synchronize()
        return _sort_slots(host, requests_then, requests)


def _event(device: torch.device) -> torch.cuda.Event | None:
    """Record an event behind the work of a GPU; None where work is done when its call returns."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _sort_slots(tables: BatchState, requests_then: Sequence[Any], requests: Sequence[Any]) -> PollResult:
    """Sort the slots that still hold the request of that time by whether the tables say that it is done."""
    done: list[int] = []
    running: list[int] = []
    slots = zip(tables.active_S.tolist(), requests_then, requests, strict=True)
    for slot, (is_active, then, now) in enumerate(slots):
        if now is not None and then is now:
            (running if is_active else done).append(slot)
    return PollResult(done, running, tables)
