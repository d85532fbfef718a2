"""An engine for asyncio: every request joins the running batch, and may be cancelled before it is done.

The engine runs in a thread of its own, so that the event loop never waits for it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

from florence2.data.sample import OpenedImage, Prediction, Sample
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.requests import EngineInput, OnTokens
from florence2.errors import UserError


class AsyncEngine:
    """Predicts samples as they come; `await close()` or an `async with` block stops the engine.

    At most `max_pending` requests are in work at a time; `generate` waits for its turn beyond that. `Sample.follow_up`
    is ignored: the caller can send the next request.
    """

    def __init__(
        self, model: Any, processor: Any, config: EngineConfig | None = None, *, max_pending: int = 256
    ) -> None:
        self.engine = Engine(model, processor, config)
        self.max_pending = max_pending
        self._queue: queue.SimpleQueue[EngineInput | None] = queue.SimpleQueue()
        self._pending: dict[Sample, asyncio.Future[Prediction]] = {}
        self._turns = asyncio.Semaphore(max_pending)
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the first request
        self._error: BaseException | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the engine and wait for its end; pending requests raise a `UserError`."""
        self._fail_pending(None)
        if self._loop is None:
            self.engine.close()
        else:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    @property
    def num_pending(self) -> int:
        """Count the requests that run or wait for a slot."""
        return len(self._pending)

    @property
    def has_stopped(self) -> bool:
        """Return whether no further request is predicted, because of an error or `close()`."""
        return self._error is not None

    def open_image(
        self,
        sample: Sample,
        *,
        formats: tuple[str, ...] = (),
        max_pixels: int | None = None,
        timeout: float | None = None,
    ) -> OpenedImage:
        """Decode the image of a sample to the model's size; `replace(sample, image=...)` then decodes no more.

        Raises ImageError for one that cannot be read, is in none of `formats` (names of Pillow) or takes longer than
        `timeout` seconds (default: `EngineConfig.image_timeout`), and ImageTooLargeError beyond `max_pixels`.
        """
        return self.engine.builder.images.open(sample, formats, max_pixels, timeout)

    def count_prompt_tokens(self, sample: Sample) -> int:
        """Count the tokens that the encoder gets for a sample: those of the image and those of the prompt."""
        return self.engine.builder.count_prompt_tokens(sample)

    async def generate(
        self,
        sample: Sample,
        generation: GenerationConfig | None = None,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Prediction:
        """Predict one sample; a cancelled request frees its slot at the next token.

        `on_text` is called in the event loop with the text so far, which is the start of the prediction's text, where
        the request has one row (one beam and one sequence).
        """
        if generation is not None:
            self.engine.config.check_request(generation)
        async with self._turns:
            if self._error is not None:
                raise UserError("the engine has stopped", "create another `AsyncEngine`") from self._error
            loop = self._start()
            request = replace(sample, follow_up=None)  # a copy, for one sample may be sent twice
            prediction: asyncio.Future[Prediction] = loop.create_future()
            self._pending[request] = prediction
            self._queue.put(
                EngineInput(request, generation, self._text_listener(request, on_text) if on_text else None)
            )
            try:
                return await prediction
            finally:
                self._pending.pop(request, None)

    async def stream(
        self, samples: Iterable[Sample], generation: GenerationConfig | None = None
    ) -> AsyncIterator[Prediction]:
        """Predict many samples, as they finish; at most `max_pending` are read ahead from the iterable."""
        source, tasks = iter(samples), set[asyncio.Task[Prediction]]()
        try:
            while True:
                while len(tasks) < self.max_pending and (sample := next(source, None)) is not None:
                    tasks.add(asyncio.create_task(self.generate(sample, generation)))
                if not tasks:
                    return
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in tasks:
                task.cancel()

    def _start(self) -> asyncio.AbstractEventLoop:
        """Start the engine's thread with the first request, and return the event loop."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        return self._loop

    def _serve(self) -> None:
        """Run the engine until the queue ends; in the engine's thread."""
        loop = self._loop
        assert loop is not None
        try:
            with self.engine as engine:
                for output in engine.outputs(self._inputs(), is_active=self._pending.__contains__):
                    loop.call_soon_threadsafe(self._resolve, output.sample, output.prediction)
        except BaseException as error:
            loop.call_soon_threadsafe(self._fail_pending, error)

    def _inputs(self) -> Iterator[EngineInput]:
        return iter(self._queue.get, None)

    def _text_listener(self, request: Sample, on_text: Callable[[str], None]) -> OnTokens:
        """Make the function that the engine's thread calls with the tokens so far."""
        loop = self._start()

        def report(text: str) -> None:
            if request in self._pending:
                on_text(text)

        def listen(ids: list[int]) -> None:
            # A character of several tokens is complete with the last of them.
            text = self.engine.preprocessor.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}")
            loop.call_soon_threadsafe(report, text)

        return listen

    def _resolve(self, sample: Sample, prediction: Prediction) -> None:
        future = self._pending.get(sample)
        if future is not None and not future.done():
            future.set_result(prediction)

    def _fail_pending(self, error: BaseException | None) -> None:
        """Raise an error in every pending request, and refuse further ones."""
        self._error = error or UserError("the engine was closed", "create another `AsyncEngine`")
        for future in self._pending.values():
            if not future.done():
                future.set_exception(self._error)
        self._pending.clear()
