"""An engine in a process of its own: samples come through a connection, and predictions go back.

`run_worker` is the end of the engine, `EngineWorker` that of the caller. The caller sends a `WorkerConfig`, then an
`EngineInput` for each sample, and None after the last. The engine sends `WorkerReady`, a `WorkerOutput` for each
prediction, and `Stats` at the end, or an error.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from florence2.data.sample import Prediction
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.requests import EngineInput
from florence2.engine.stats import Stats
from florence2.errors import UserError
from florence2.system import tune_allocator


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs to start; it can be pickled.

    `load` loads model and processor onto a device.
    """

    load: Callable[[str | None], tuple[Any, Any]]
    engine: EngineConfig

    def window(self, slots: int) -> int:
        """Count the samples that may be open at a worker, so that its engine never waits for the caller.

        Its request queue has room for all of them, so that it always reads its connection and neither end blocks.
        """
        return slots + 2 * max(1, self.engine.num_workers)


@dataclass(frozen=True)
class WorkerReady:
    """The message that the model is loaded; the engine has this many slots."""

    slots: int


@dataclass(frozen=True)
class WorkerOutput:
    """One prediction, how many slots are in use, and whether the engine compiles in the background (1 or 0)."""

    prediction: Prediction
    slots_in_use: int
    num_compiling: int = 0


def run_worker(connection: Connection, device: str | None) -> None:
    """Predict the samples that come until there are no more; without a sample no model is loaded."""
    with connection:
        try:
            connection.send(_predict(connection, device))
        except (EOFError, ConnectionError):
            pass  # the caller has gone, and nobody waits for predictions
        except UserError as error:
            connection.send(error)
        except Exception:
            connection.send(RuntimeError(f"the engine on {device} failed:\n{traceback.format_exc()}"))


def _predict(connection: Connection, device: str | None) -> Stats:
    worker_config: WorkerConfig = connection.recv()
    first = connection.recv()
    if first is None:
        return Stats()
    with Engine(*worker_config.load(device), worker_config.engine) as engine:
        connection.send(WorkerReady(engine.stats.slots))
        for prediction in engine.run(chain([first], iter(connection.recv, None))):
            connection.send(WorkerOutput(prediction, engine.stats.slots_in_use, engine.stats.num_compiling))
        return engine.stats


@dataclass(eq=False)
class EngineWorker:
    """A worker as its caller knows it: its connection, its statistics, and the samples without a prediction yet.

    These include the follow-ups that the worker makes itself, so that none is lost if it dies.
    """

    name: str
    connection: Connection
    process: BaseProcess | None = None
    window: int = 0
    pending: list[EngineInput] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    is_done: bool = False

    @property
    def room(self) -> int:
        """Count the samples that it may still be sent."""
        return self.window - len(self.pending)

    def send_config(self, config: WorkerConfig) -> None:
        """Send the config, and open the window for samples before the model is loaded."""
        self.window = config.window(0)
        with suppress(ConnectionError):
            self.connection.send(config)

    def submit(self, entry: EngineInput) -> None:
        """Send a sample; `receive` reports a worker that has died."""
        self.pending.append(entry)
        with suppress(ConnectionError):
            self.connection.send(entry)

    def send_done(self) -> None:
        """Send the message that there are no more samples."""
        with suppress(ConnectionError):
            self.connection.send(None)

    def receive(self, config: WorkerConfig) -> Prediction | None:
        """Receive one message; raises EOFError if the worker died."""
        try:
            message = self.connection.recv()
        except OSError as error:
            raise EOFError from error
        if isinstance(message, Exception):
            raise message
        if isinstance(message, WorkerReady):
            self.stats.slots, self.window = message.slots, config.window(message.slots)
        elif isinstance(message, Stats):
            self.stats, self.is_done = message, True
        elif isinstance(message, WorkerOutput):
            self.stats.slots_in_use, self.stats.num_compiling = message.slots_in_use, message.num_compiling
            self._replace_by_follow_ups(message.prediction)
            return message.prediction
        return None

    def close(self) -> None:
        """Close the connection; a process that does not end by itself is killed."""
        self.connection.close()
        if self.process is not None:
            self.process.join(timeout=10)
            self.process.kill()
            self.process.join()

    def _replace_by_follow_ups(self, prediction: Prediction) -> None:
        """Remove the sample of a prediction from those pending, and add its follow-ups, which the worker runs."""
        entry = next((entry for entry in self.pending if entry.sample.key == prediction.key), None)
        if entry is not None:
            self.pending.remove(entry)
            self.pending += entry.follow_ups(prediction)


def start_worker(device: str | None, threads: int | None = None) -> EngineWorker:
    """Start a process with an engine on a device; `threads` is the number of threads of a CPU engine."""
    context = get_context("spawn")  # a forked process cannot use a GPU
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, device, threads), name=f"engine on {device}")
    process.start()
    theirs.close()
    return EngineWorker(device or "the default device", ours, process)


def _main(connection: Connection, device: str | None, threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles the signal, and closes the connection
    tune_allocator()
    if threads:
        torch.set_num_threads(threads)
    run_worker(connection, device)
