"""An engine for asyncio: every request joins those that are being answered, and may leave before it is done.

The engine runs in a thread of its own; the event loop never waits for it. Knows no server.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

from florence2.data.sample import Prediction, Sample
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.errors import UserError


class AsyncEngine:
    """Answers requests as they come; an async context manager.

    At most `limit` requests are held at a time; further ones wait their turn in `ask`. `Sample.then` is not followed:
    who awaits an answer can ask on.
    """

    def __init__(
        self, model: Any, processor: Any, settings: EngineConfig | None = None, *, max_pending: int = 256
    ) -> None:
        self.engine = Engine(model, processor, settings)
        self.limit = max_pending
        self._requests: queue.SimpleQueue[Sample | None] = queue.SimpleQueue()
        self._open: dict[Sample, asyncio.Future[Prediction]] = {}
        self._error: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(self.limit)
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give up what is open, and wait for the engine to end."""
        self._end(None)
        self._requests.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def num_pending(self) -> int:
        """Count the requests that are being answered or wait for a slot."""
        return len(self._open)

    async def generate(self, sample: Sample) -> Prediction:
        """Answer one sample; a cancelled request frees its slot at the next token."""
        async with self._turns:
            if self._error is not None or not self._thread.is_alive():
                raise UserError("the engine has stopped", "start another") from self._error
            request = replace(sample, follow_up=None)  # an object of its own, for one sample may be asked twice
            answer: asyncio.Future[Prediction] = self._loop.create_future()
            self._open[request] = answer
            self._requests.put(request)
            try:
                return await answer
            finally:
                self._open.pop(request, None)

    async def stream(self, samples: Iterable[Sample]) -> AsyncIterator[Prediction]:
        """Answer many samples, as they finish; no more than `limit` are taken from the source ahead of that."""
        source, asked = iter(samples), set[asyncio.Task[Prediction]]()
        try:
            while True:
                while len(asked) < self.limit and (sample := next(source, None)) is not None:
                    asked.add(asyncio.create_task(self.generate(sample)))
                if not asked:
                    return
                done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in asked:
                task.cancel()

    def _serve(self) -> None:
        """Run the engine until there are no more requests; not in the loop's thread."""
        try:
            with self.engine as engine:
                for answered in engine.outputs(self._arriving(), wanted=self._open.__contains__):
                    self._loop.call_soon_threadsafe(self._give, answered.sample, answered.prediction)
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._end, error)

    def _arriving(self) -> Iterator[Sample]:
        return iter(self._requests.get, None)

    def _give(self, sample: Sample, prediction: Prediction) -> None:
        answer = self._open.get(sample)
        if answer is not None and not answer.done():
            answer.set_result(prediction)

    def _end(self, error: BaseException | None) -> None:
        """Let nobody wait for an engine that has stopped."""
        self._error = error or UserError("the engine was closed")
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(self._error)
        self._open.clear()
