"""Finding the slots that are done, without making the host wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from florence2.engine.decoding.batch_state import BatchState


class CompletionPoller:
    """Reports which slots are done, and the tables to read their tokens from.

    With an `interval` above 1 it reads a copy that is `interval` steps old, so that no step waits for the device. That
    is exact: a slot that is done stays unchanged, and a slot that another request holds by now is not reported.
    """

    def __init__(self, interval: int) -> None:
        self._interval, self._steps = interval, 0
        self._copy: tuple[BatchState, list[Any], torch.cuda.Event | None] | None = None

    def done(self, batch: BatchState, requests: Sequence[Any]) -> tuple[list[int], BatchState]:
        """List the slots whose request is known to be done, with the tables that hold their tokens."""
        self._steps += 1
        if self._interval == 1:
            return _done_slots(batch, requests, requests), batch
        if self._steps % self._interval:
            return [], batch
        previous, self._copy = self._copy, (batch.to_host_async(), list(requests), _event(batch.active_S.device))
        if previous is None:
            return [], batch
        host, requests_then, event = previous
        if event is not None:
            event.synchronize()
        return _done_slots(host, requests_then, requests), host


def _event(device: torch.device) -> torch.cuda.Event | None:
    """Record an event behind the work of a GPU; None where work is done when its call returns."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _done_slots(batch: BatchState, requests_then: Sequence[Any], requests: Sequence[Any]) -> list[int]:
    """List the slots that are inactive in the tables and still hold the request of that time."""
    return [
        slot
        for slot, (is_active, then, now) in enumerate(
            zip(batch.active_S.tolist(), requests_then, requests, strict=True)
        )
        if now is not None and then is now and not is_active
    ]
