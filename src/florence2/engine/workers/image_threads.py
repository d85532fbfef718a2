"""Threads that open images, with a time limit for each: a thread that hangs is abandoned and replaced."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from florence2.data.decoding.decode_image import slow_decoder_error, waiting_decoder_error
from florence2.data.sample import ImageError, Sample

R = TypeVar("R")
CLOSE_SECONDS = 5.0  # `close` waits this long for the tasks in work
_CHECKS_PER_LIMIT = 20


@dataclass(frozen=True)
class _Task(Generic[R]):
    """A sample in work, with the times at its start: by the clock, and of its thread's processor time."""

    future: Future[R]
    sample: Sample
    start: float
    processor_start: float


class ImageThreads(Generic[R]):
    """Threads that load the images of samples by a function; `close()` stops them.

    After `timeout` seconds of processor time, or `clock_timeout` seconds, the future of a sample gets an ImageError,
    and a new thread replaces the one that hangs. Where a system does not tell the processor time of a thread, `timeout`
    is by the clock. All are daemons, because a decoder that never returns must not keep the process alive.
    """

    def __init__(
        self, load_image: Callable[[Sample], R], num_threads: int, *, timeout: float, clock_timeout: float
    ) -> None:
        self._load_image, self._timeout, self._clock_timeout = load_image, timeout, clock_timeout
        self._tasks: queue.SimpleQueue[tuple[Future[R], Sample] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._running: dict[threading.Thread, _Task[R]] = {}
        self._closed = threading.Event()
        for _ in range(num_threads):
            self._start()
        threading.Thread(target=self._watch, name="watch-images", daemon=True).start()

    def submit(self, sample: Sample) -> Future[R]:
        """Return the future of what is loaded."""
        future: Future[R] = Future()
        self._tasks.put((future, sample))
        return future

    def close(self) -> None:
        """Cancel what waits, and wait some seconds for what is in work."""
        self._closed.set()
        with self._lock:
            threads = list(self._threads)
        while not self._tasks.empty():
            if (task := self._tasks.get()) is not None:
                task[0].cancel()
        for _ in threads:
            self._tasks.put(None)
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="open-images", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while (task := self._tasks.get()) is not None:
            future, sample = task
            if not future.set_running_or_notify_cancel():
                continue
            with self._lock:
                self._running[me] = _Task(future, sample, time.monotonic(), _processor_time(me))
            outcome: Callable[[], Any]
            try:
                result = self._load_image(sample)
            except BaseException as error:  # the future raises it where its result is needed
                outcome = _setter(future.set_exception, error)
            else:
                outcome = _setter(future.set_result, result)
            with self._lock:
                if self._running.pop(me, None) is None:
                    return  # abandoned, and replaced
            outcome()

    def _watch(self) -> None:
        while not self._closed.wait(self._timeout / _CHECKS_PER_LIMIT):
            with self._lock:
                errors = {thread: self._time_error(thread, task) for thread, task in self._running.items()}
                expired = [(self._running.pop(thread), error) for thread, error in errors.items() if error]
                self._threads.difference_update(thread for thread, error in errors.items() if error)
                for _ in expired:
                    self._start()
            for task, error in expired:
                task.future.set_exception(error)

    def _time_error(self, thread: threading.Thread, task: _Task[R]) -> ImageError | None:
        if time.monotonic() - task.start > self._clock_timeout:
            return waiting_decoder_error(task.sample.id, self._clock_timeout)
        if _processor_time(thread) - task.processor_start > self._timeout:
            return slow_decoder_error(task.sample.id, self._timeout)
        return None


def _processor_time(thread: threading.Thread) -> float:
    """Return the processor time of a running thread in seconds; that of the clock where the system does not tell."""
    if hasattr(time, "pthread_getcpuclockid") and thread.ident is not None:
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return time.monotonic()


def _setter(method: Callable[[Any], None], value: Any) -> Callable[[], None]:
    return lambda: method(value)
