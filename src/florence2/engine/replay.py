"""Work that a GPU has learnt by heart: recorded as a graph, and started with one call instead of hundreds.

Knows nothing of what the work is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


class Replay:
    """Runs a step; on a GPU as a recorded graph, once it has been run in the same shape a few times.

    The times before are steps like any other: they warm up what recording may not meet cold, and shapes that come
    seldom are not worth a recording. All graphs work in the same memory, for only one runs at a time.
    """

    PAYS_FROM = 8  # steps in one shape

    def __init__(self, step: Callable[..., None], records: bool) -> None:
        self._step, self._records = step, records
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._memory = torch.cuda.graph_pool_handle() if records else None

    @property
    def recorded(self) -> int:
        """Count the shapes that have a graph."""
        return len(self._graphs)

    def __call__(self, *shape: int) -> None:
        """Do the step for a shape; whatever lies elsewhere in memory must show in the shape."""
        self._seen[shape] += 1
        if not self._records or self._seen[shape] < self.PAYS_FROM:
            self._step(*shape)
            return
        if shape not in self._graphs:
            self._graphs[shape] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graphs[shape], self._memory, capture_error_mode="thread_local"):
                self._step(*shape)
        self._graphs[shape].replay()
