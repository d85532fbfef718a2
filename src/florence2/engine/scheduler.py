"""The scheduler of an engine: which slot holds which request.

Plain Python: lengths are counted here, so that no step asks the device for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from florence2.engine.requests import IsActive, Request, RequestOutput, RequestQueue


@dataclass(eq=False)
class RunningRequest:
    """A request in a slot: the number of its search, and the tokens that it has with the start token."""

    request: Request
    search: int
    length: int = 1


@dataclass(frozen=True)
class DecodePlan:
    """The shape of one decode step: the first `slots`, `tokens` of each, and the searches that choose tokens.

    `moves` (source, target) fill the gaps among the first slots before the step.
    """

    slots: int
    tokens: int
    searches: tuple[int, ...]
    moves: tuple[tuple[int, int], ...] = ()


class Scheduler:
    """Admits requests into free slots, moves them together, and frees their slots.

    With `static_shapes`, for devices that run recorded graphs, the number of slots of a step is a power of two.
    """

    def __init__(self, num_slots: int, *, static_shapes: bool) -> None:
        self.slots: list[RunningRequest | None] = [None] * num_slots
        self._static_shapes = static_shapes

    def with_slots(self, num_slots: int) -> Scheduler:
        """Return an empty scheduler with another number of slots."""
        return Scheduler(num_slots, static_shapes=self._static_shapes)

    @property
    def num_running(self) -> int:
        """Count the slots that hold a request."""
        return sum(running is not None for running in self.slots)

    @property
    def searches(self) -> tuple[int, ...]:
        """List the searches of the running requests, each once."""
        return tuple(sorted({running.search for running in self.slots if running is not None}))

    def admit(self, queue: RequestQueue, batch_size: int) -> tuple[list[Request], list[RequestOutput]]:
        """Take requests for the free slots from the queue, and the outputs of samples that failed.

        It waits for the first one only where nothing else can be done. A device with static shapes encodes full batches
        of `batch_size` images in the time of one, and so waits for that many free slots.
        """
        requests: list[Request] = []
        failed: list[RequestOutput] = []
        num_running = self.num_running
        room = len(self.slots) - num_running
        if self._static_shapes and num_running and len(self.slots) >= 4 * batch_size:
            room = room // batch_size * batch_size
        while len(requests) < room:
            item = queue.get(wait=not (requests or failed or num_running))
            if item is None:
                break
            if isinstance(item, Request):
                requests.append(item)
            else:
                failed.append(item)
        return requests, failed

    def place(self, requests: Sequence[Request], searches: Sequence[int]) -> list[int]:
        """Put requests, each with the number of its search, into the first free slots, and return these."""
        free = [slot for slot, running in enumerate(self.slots) if running is None][: len(requests)]
        for slot, request, search in zip(free, requests, searches, strict=True):
            self.slots[slot] = RunningRequest(request, search)
        return free

    def drop_cancelled(self, is_active: IsActive) -> list[int]:
        """Free the slots of requests that nobody waits for, and return these."""
        dropped = [
            slot
            for slot, running in enumerate(self.slots)
            if running is not None and not is_active(running.request.sample)
        ]
        for slot in dropped:
            self.slots[slot] = None
        return dropped

    def plan_step(self, round_up: Callable[[int], int]) -> DecodePlan:
        """Plan the next decode step, and count the token that it appends to every request."""
        num_running = self.num_running
        count = min(2 ** (num_running - 1).bit_length(), len(self.slots)) if self._static_shapes else num_running
        moves = self._compact(count)
        running = [each for each in self.slots if each is not None]
        tokens = round_up(max(each.length for each in running) + 1)
        for each in running:
            each.length = min(each.length + 1, each.request.limits.max_length)
        return DecodePlan(count, tokens, self.searches, moves)

    def finish(self, slot: int) -> Request:
        """Free a slot, and return the request that it held."""
        running = self.slots[slot]
        assert running is not None
        self.slots[slot] = None
        return running.request

    def clear(self) -> None:
        """Free all slots."""
        self.slots = [None] * len(self.slots)

    def _compact(self, count: int) -> tuple[tuple[int, int], ...]:
        """Move requests from behind the first `count` slots into the gaps among these."""
        gaps = [slot for slot in range(count) if self.slots[slot] is None]
        behind = [slot for slot in range(count, len(self.slots)) if self.slots[slot] is not None]
        moves = tuple(zip(behind, gaps, strict=False))
        for source, target in moves:
            self.slots[target], self.slots[source] = self.slots[source], None
        return moves
