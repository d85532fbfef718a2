"""Work that a GPU has learnt by heart: recorded as a graph, and started with one call instead of hundreds.

Knows nothing of what the work is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


class CudaGraphCache:
    """Runs a step; on a GPU as a recorded graph, once it has been run in the same shape a few times.

    The times before are steps like any other: they warm up what recording may not meet cold, and shapes that come
    seldom are not worth a recording. All graphs work in the same memory, for only one runs at a time.
    """

    def __init__(
        self, step: Callable[..., None], enabled: bool, min_calls: int = 8, max_graphs: int | None = None
    ) -> None:
        """Take the step, how often a shape must have come to be worth a recording, and how many may be recorded."""
        self._step, self._records, self._pays_from, self._most = step, enabled, min_calls, max_graphs
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._memory = torch.cuda.graph_pool_handle() if enabled else None

    @property
    def num_graphs(self) -> int:
        """Count the shapes that have a graph."""
        return len(self._graphs)

    def __call__(self, *shape: int) -> None:
        """Do the step for a shape; whatever lies elsewhere in memory must show in the shape."""
        self._seen[shape] += 1
        if shape not in self._graphs and self._is_due(shape):
            self._record(shape)
        if shape in self._graphs:
            self._graphs[shape].replay()
        else:
            self._step(*shape)

    def clear(self) -> None:
        """Drop what is recorded, and give back its memory."""
        self._graphs.clear()
        torch.cuda.empty_cache()

    def disable(self) -> None:
        """Record nothing any more."""
        self._records = False
        self.clear()

    def _record(self, shape: tuple[int, ...]) -> None:
        graph: Any = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self._memory, capture_error_mode="thread_local"):
                self._step(*shape)
        except RuntimeError:  # no room, or work that cannot be recorded: what it was is seen when it is done plainly
            graph = None
        if graph is None:
            self.disable()
        else:
            self._graphs[shape] = graph

    def _is_due(self, shape: tuple[int, ...]) -> bool:
        has_room = self._most is None or self.num_graphs < self._most
        return self._records and has_room and self._seen[shape] >= self._pays_from
