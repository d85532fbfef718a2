"""An engine in a process of its own: samples come through a connection, answers go back.

Both ends: `work` is the engine's, `Worker` that of whoever hands the samples out. Through a connection go a brief, then
samples, and None after the last; back come `Ready`, one `News` for each prediction, `Stats` at the end, or an error.
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

from florence2.data.sample import Prediction, Sample
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.stats import Stats
from florence2.errors import UserError
from florence2.system import tune_allocator


@dataclass(frozen=True)
class WorkerConfig:
    """What an engine's process must know; all of it can be pickled.

    `load` gives model and processor on a device.
    """

    load: Callable[[str | None], tuple[Any, Any]]
    settings: EngineConfig

    def window(self, slots: int) -> int:
        """Count the samples that may wait at an engine: so many that it never waits for them.

        No more than its questions make room for, so that it always reads what comes and nobody blocks the other.
        """
        return slots + 2 * max(1, self.settings.num_workers)


@dataclass(frozen=True)
class WorkerReady:
    """The model is loaded; the engine answers so many samples at a time."""

    slots: int


@dataclass(frozen=True)
class WorkerOutput:
    """One prediction, and how many slots are in use."""

    prediction: Prediction
    in_use: int


def run_worker(connection: Connection, device: str | None) -> None:
    """Answer the samples that come until there are no more; without any, no model is loaded."""
    with connection:
        try:
            connection.send(_worked(connection, device))
        except (EOFError, ConnectionError):
            pass  # whoever asked has gone, and nobody waits for answers
        except UserError as error:
            connection.send(error)
        except Exception:
            connection.send(RuntimeError(f"the engine on {device} failed:\n{traceback.format_exc()}"))


def _worked(connection: Connection, device: str | None) -> Stats:
    brief: WorkerConfig = connection.recv()
    first = connection.recv()
    if first is None:
        return Stats()
    with Engine(*brief.load(device), brief.settings) as engine:
        connection.send(WorkerReady(engine.stats.slots))
        for prediction in engine.run(chain([first], iter(connection.recv, None))):
            connection.send(WorkerOutput(prediction, engine.stats.slots_in_use))
        return engine.stats


@dataclass(eq=False)
class EngineWorker:
    """An engine elsewhere, as seen by whoever asks it: what it was given and has not answered yet."""

    name: str
    connection: Connection
    process: BaseProcess | None = None
    window: int = 0
    pending: list[Sample] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)
    is_done: bool = False

    @property
    def room(self) -> int:
        """Count the samples it may still be given."""
        return self.window - len(self.pending)

    def send_config(self, brief: WorkerConfig) -> None:
        """Say what is to be done; what may already be given before the model is loaded."""
        self.window = brief.window(0)
        with suppress(ConnectionError):
            self.connection.send(brief)

    def submit(self, sample: Sample) -> None:
        """Hand a sample over; where the worker has died this shows when it is heard next."""
        self.pending.append(sample)
        with suppress(ConnectionError):
            self.connection.send(sample)

    def send_done(self) -> None:
        """Say that there is no more to do."""
        with suppress(ConnectionError):
            self.connection.send(None)

    def receive(self, brief: WorkerConfig) -> Prediction | None:
        """Take one message in; EOFError if the worker died."""
        try:
            message = self.connection.recv()
        except OSError as error:
            raise EOFError from error
        if isinstance(message, Exception):
            raise message
        if isinstance(message, WorkerReady):
            self.stats.slots, self.window = message.slots, brief.window(message.slots)
        elif isinstance(message, Stats):
            self.stats, self.is_done = message, True
        elif isinstance(message, WorkerOutput):
            self.stats.slots_in_use = message.in_use
            self._close(message.prediction)
            return message.prediction
        return None

    def close(self) -> None:
        """Let go of the worker; one that does not end by itself is killed."""
        self.connection.close()
        if self.process is not None:
            self.process.join(timeout=10)
            self.process.kill()
            self.process.join()

    def _close(self, prediction: Prediction) -> None:
        answered = next((sample for sample in self.pending if sample.key == prediction.key), None)
        if answered is not None:
            self.pending.remove(answered)


def start_worker(device: str | None, threads: int | None = None) -> EngineWorker:
    """Start a process with an engine on a device; `threads` is how many a CPU engine computes with."""
    context = get_context("spawn")  # a forked process cannot use a GPU
    ours, theirs = context.Pipe()
    process = context.Process(target=_start, args=(theirs, device, threads), name=f"engine on {device}")
    process.start()
    theirs.close()
    return EngineWorker(device or "the default device", ours, process)


def _start(connection: Connection, device: str | None, threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks is told, and closes the connection
    tune_allocator()
    if threads:
        torch.set_num_threads(threads)
    run_worker(connection, device)
