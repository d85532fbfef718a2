"""Several engines as one: each sample goes to whichever has room, and one stream of answers comes back.

It has the face of `Engine`. An engine that dies leaves its open samples to the others; when the last one dies, that is
an error. Knows no files.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Self

import torch

from florence2.data.sample import Prediction, Sample
from florence2.engine.stats import Stats
from florence2.engine.workers.worker import EngineWorker, WorkerConfig, start_worker
from florence2.errors import UserError


class MultiEngine:
    """One engine for each device, in a process of its own, and `guests` elsewhere; a context manager for one run."""

    def __init__(
        self,
        config: WorkerConfig,
        devices: Sequence[str | None],
        remote_connections: Sequence[Connection] = (),
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        """Take the names of devices; `tell` hears of engines that die."""
        self.config, self.devices, self.remote_connections, self.warn = config, devices, remote_connections, warn

    def __enter__(self) -> Self:
        on_cpu = sum(device == "cpu" for device in self.devices)
        threads = max(1, torch.get_num_threads() // on_cpu) if on_cpu else None
        self._workers = [start_worker(device, threads) for device in self.devices]
        self._workers += [
            EngineWorker(f"process {number}", guest) for number, guest in enumerate(self.remote_connections, 1)
        ]
        for worker in self._workers:
            worker.send_config(self.config)
        self._alive = list(self._workers)
        self._last: tuple[Sample, EngineWorker] | None = None
        self._head: deque[Sample] = deque()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    @property
    def stats(self) -> Stats:
        """Add up what the engines say about themselves."""
        total = Stats()
        for worker in self._workers:
            total.add(worker.stats)
        return total

    def run(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        """Answer every sample; answers come as they finish."""
        source = iter(samples)
        while self._hand_out(source):
            yield from self._receive()
        for worker in self._alive:
            worker.send_done()
        while self._alive:
            yield from self._receive()

    def _hand_out(self, source: Iterator[Sample]) -> bool:
        """Give samples to whoever has room; False when all are answered."""
        while (sample := self._next(source)) is not None and (worker := self._choose_worker(sample)) is not None:
            worker.submit(self._head.popleft())
            self._last = sample, worker
        return bool(self._head) or any(worker.pending for worker in self._alive)

    def _next(self, source: Iterator[Sample]) -> Sample | None:
        if not self._head:
            self._head.extend(islice(source, 1))
        return self._head[0] if self._head else None

    def _choose_worker(self, sample: Sample) -> EngineWorker | None:
        """Choose who answers: questions about one picture stay together, for it is then looked at once."""
        if self._last is not None and self._last[0].id == sample.id and self._last[1] in self._alive:
            return self._last[1] if self._last[1].room > 0 else None
        freest = max(self._alive, key=lambda worker: worker.room)
        return freest if freest.room > 0 else None

    def _receive(self) -> Iterator[Prediction]:
        """Take in what the engines say; a connection that ends before its work is done is a death."""
        heard = wait([worker.connection for worker in self._alive])
        for worker in [each for each in self._alive if each.connection in heard]:
            try:
                prediction = worker.receive(self.config)
            except EOFError:
                self._alive.remove(worker)
                self._handle_death(worker)
                continue
            if worker.is_done:
                self._alive.remove(worker)
            if prediction is not None:
                yield prediction

    def _handle_death(self, worker: EngineWorker) -> None:
        """Ask others what a dead engine leaves open."""
        if worker.process is not None:
            worker.process.join()
        code = "" if worker.process is None else f" with exit code {worker.process.exitcode}"
        death = f"the engine on {worker.name} ended{code}"
        if not self._alive:
            raise UserError(f"{death}, and there is no other", "run it again: what was answered is kept")
        self.warn(f"{death}; the others go on")
        self._head.extendleft(reversed(worker.pending))
        worker.pending.clear()
