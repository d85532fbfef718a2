"""A cache of CUDA graphs: a recorded step starts with one call instead of hundreds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


class CudaGraphCache:
    """Runs a step; on a GPU as a CUDA graph, once it has run in the same shape a few times.

    The first calls run as usual: they warm up what a recording may not initialize, and rare shapes are not worth a
    recording. All graphs share one memory pool, for only one of them runs at a time.
    """

    def __init__(
        self, step: Callable[..., None], enabled: bool, min_calls: int = 8, max_graphs: int | None = None
    ) -> None:
        """Take the step, the calls of a shape after which it is recorded, and the most graphs that are recorded."""
        self._step, self._enabled, self._min_calls, self._max_graphs = step, enabled, min_calls, max_graphs
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._calls: Counter[tuple[int, ...]] = Counter()
        self._memory_pool = torch.cuda.graph_pool_handle() if enabled else None

    @property
    def num_graphs(self) -> int:
        """Count the shapes that have a graph."""
        return len(self._graphs)

    def __call__(self, *shape: int) -> None:
        """Run the step for a shape; a change of any address that the step reads or writes must change the shape."""
        if shape not in self._graphs and self._is_due(shape):
            self._record(shape)
        if shape in self._graphs:
            self._graphs[shape].replay()
        else:
            self._step(*shape)

    def clear(self) -> None:
        """Drop all graphs, and free their memory."""
        self._graphs.clear()
        torch.cuda.empty_cache()

    def reset(self) -> None:
        """Drop all graphs, and count calls anew."""
        self._calls.clear()
        self.clear()

    def disable(self) -> None:
        """Drop all graphs, and record none any more."""
        self._enabled = False
        self.clear()

    def _record(self, shape: tuple[int, ...]) -> None:
        graph: Any = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self._memory_pool, capture_error_mode="thread_local"):
                self._step(*shape)
        except RuntimeError:  # no memory, or an operation that cannot be recorded: the plain step reports its errors
            graph = None
        if graph is None:
            self.disable()
        else:
            self._graphs[shape] = graph

    def _is_due(self, shape: tuple[int, ...]) -> bool:
        """Count a call that is not recorded, and return whether its shape is worth a recording now."""
        if not self._enabled or (self._max_graphs is not None and self.num_graphs >= self._max_graphs):
            return False
        self._calls[shape] += 1
        return self._calls[shape] >= self._min_calls
