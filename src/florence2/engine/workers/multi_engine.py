"""Several engines as one: each sample goes to a worker with room, and all predictions come in one stream.

It has the interface of `Engine`. The open samples of a worker that dies go to the others; the death of the last worker
is an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Self

import torch

from florence2.data.sample import Prediction, Sample
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.requests import EngineInput
from florence2.engine.stats import Stats
from florence2.engine.workers.worker import EngineWorker, WorkerConfig, start_worker
from florence2.errors import UserError
from florence2.log import logger


class MultiEngine:
    """One engine for each device in a process of its own, and engines at remote connections, for one run.

    `close()` or a `with` block ends the processes.
    """

    def __init__(
        self,
        config: WorkerConfig,
        devices: Sequence[str | None],
        remote_connections: Sequence[Connection] = (),
    ) -> None:
        """Start a worker on each device; log a warning when a worker dies."""
        self.config, self.is_closed = config, False
        num_on_cpu = sum(device == "cpu" for device in devices)
        threads = max(1, torch.get_num_threads() // num_on_cpu) if num_on_cpu else None
        self._workers = [EngineWorker(f"process {number}", each) for number, each in enumerate(remote_connections, 1)]
        try:
            for index, device in enumerate(devices):
                self._workers.insert(index, start_worker(device, threads))
            for worker in self._workers:
                worker.send_config(config)
        except BaseException:
            self.close()
            raise
        self._alive = list(self._workers)
        self._last: tuple[Sample, EngineWorker] | None = None
        self._head: deque[EngineInput] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end the processes."""
        self.is_closed = True
        for worker in self._workers:
            worker.close()

    @property
    def stats(self) -> Stats:
        """Add up the statistics of all workers."""
        total = Stats()
        for worker in self._workers:
            total.add(worker.stats)
        return total

    def run(
        self, samples: Iterable[Sample | EngineInput], generation: GenerationConfig | None = None
    ) -> Iterator[Prediction]:
        """Predict every sample; predictions come as they finish.

        `generation` holds for all samples that bring no config of their own (default: `EngineConfig.generation`).
        """
        if self.is_closed:
            raise UserError("the engine is closed", "create another `MultiEngine`")
        if any(worker.is_done for worker in self._workers):
            raise UserError("the engine has done its only run", "create another `MultiEngine`")
        if generation is not None:
            self.config.engine.check_request(generation)
        return self._run(samples, generation)

    def _run(
        self, samples: Iterable[Sample | EngineInput], generation: GenerationConfig | None
    ) -> Iterator[Prediction]:
        inputs = (EngineInput.of(each, generation) for each in samples)
        while self._dispatch(inputs):
            yield from self._receive()
        for worker in self._alive:
            worker.send_done()
        while self._alive:
            yield from self._receive()

    def _dispatch(self, inputs: Iterator[EngineInput]) -> bool:
        """Send samples to the workers with room; False when all samples have predictions."""
        while (entry := self._next(inputs)) is not None and (worker := self._choose_worker(entry.sample)) is not None:
            worker.submit(self._head.popleft())
            self._last = entry.sample, worker
        return bool(self._head) or any(worker.pending for worker in self._alive)

    def _next(self, inputs: Iterator[EngineInput]) -> EngineInput | None:
        if not self._head:
            self._head.extend(islice(inputs, 1))
        return self._head[0] if self._head else None

    def _choose_worker(self, sample: Sample) -> EngineWorker | None:
        """Choose a worker for a sample: samples of one image go to one worker, which encodes it once."""
        if self._last is not None and self._last[0].id == sample.id and self._last[1] in self._alive:
            return self._last[1] if self._last[1].room > 0 else None
        freest = max(self._alive, key=lambda worker: worker.room)
        return freest if freest.room > 0 else None

    def _receive(self) -> Iterator[Prediction]:
        """Receive the messages that are there; a connection that ends before its work is done is a dead worker."""
        ready = wait([worker.connection for worker in self._alive])
        for worker in [each for each in self._alive if each.connection in ready]:
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
        """Return the open samples of a dead worker to the head of the queue."""
        if worker.process is not None:
            worker.process.join()
        code = "" if worker.process is None else f" with exit code {worker.process.exitcode}"
        death = f"the engine on {worker.name} ended{code}"
        if not self._alive:
            raise UserError(f"{death}, and no other engine is left", "run it again; finished predictions are not lost")
        logger.warning(f"{death}; the others continue")
        self._head.extendleft(reversed(worker.pending))
        worker.pending.clear()
