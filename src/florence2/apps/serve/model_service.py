"""The models of a server: a base and adapters by name, each with an engine whose slots all clients use.

Nothing here knows HTTP: routes and pages of any kind predict through a `ModelService`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from florence2 import (
    AsyncEngine,
    ClassSplitter,
    GenerationConfig,
    OpenedImage,
    Prediction,
    Sample,
    TaskPipeline,
    find_task,
    split_prompt,
)
from florence2.apps.serve.request_limits import RequestError, RequestLimits, busy
from florence2.apps.serve.server_metrics import ServerMetrics
from florence2.errors import UserError

TASK_SEPARATOR = ":"
DEFAULT_TASK = "caption"
OnText = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model under its name, with the task or prompt that it was fine-tuned on, if any."""

    name: str
    engine: AsyncEngine
    trained_task: str | None = None

    @property
    def default_task(self) -> str:
        """Return the task of requests that name none."""
        return self.trained_task or DEFAULT_TASK

    @property
    def num_bytes(self) -> int:
        """Return the size of the weights in memory."""
        return sum(each.numel() * each.element_size() for each in self.engine.engine.model.parameters())


@dataclass(frozen=True, eq=False)
class NamedImage:
    """A decoded image and its name in answers."""

    name: str
    image: OpenedImage


class ModelService:
    """Predicts images for many clients at a time; `await close()` stops the engines."""

    def __init__(self, models: Sequence[ServedModel], limits: RequestLimits | None = None) -> None:
        """Take the models; the first answers requests that name none or an unknown one."""
        self.models = {model.name: model for model in models}
        self.limits = limits or RequestLimits()
        self.metrics = ServerMetrics()
        self.started = time.time()
        self.num_requests = 0
        self.metrics.watch("florence2_requests_in_work", "Requests that are in work", lambda: self.num_requests)
        pending: dict[str, Callable[[], float]] = {
            name: lambda engine=model.engine: engine.num_pending  # type: ignore[misc]
            for name, model in self.models.items()
        }
        self.metrics.watch_each("florence2_pending_predictions", "Predictions in work or waiting for a slot", pending)

    async def close(self) -> None:
        """Stop the engines; what is still in work fails."""
        for model in self.models.values():
            await model.engine.close()

    @property
    def default(self) -> ServedModel:
        """Return the model of requests that name none."""
        return next(iter(self.models.values()))

    def find(self, name: str | None) -> tuple[ServedModel, str]:
        """Return the model of a name, and the task behind its colon or ""; an unknown name is the default model."""
        if name in self.models:
            return self.models[name], ""
        head, _, tail = (name or "").partition(TASK_SEPARATOR)
        is_task = bool(tail) and is_task_name(tail)
        return self.models.get(head, self.default), tail if is_task else ""

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request as in work; raise a `RequestError` of status 503 where there are too many."""
        self.require_room()
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

    def require_room(self) -> None:
        """Raise a `RequestError` of status 503 where no further request is accepted."""
        if self.num_requests >= self.limits.max_queue:
            raise busy(f"the server has {self.num_requests} requests in work")

    async def predict(
        self,
        model: ServedModel,
        image: NamedImage,
        pipeline: TaskPipeline,
        generation: GenerationConfig,
        *,
        on_text: OnText | None = None,
    ) -> list[Prediction]:
        """Run all tasks of a pipeline on an image, cascades included; the predictions are in the order of the tasks.

        `on_text` gets the text so far of the first prediction, where the pipeline has one task.
        """
        try:
            samples = pipeline.samples(image.name, image.image)
            model.engine.engine.config.check_request(generation)
        except UserError as error:
            raise RequestError.of(error) from error
        classes = ClassSplitter(pipeline)
        requests = list(classes.split(samples))
        run = _PipelineRun(self, model, generation, on_text if len(requests) == 1 else None)
        groups = await gather_or_cancel([run.predict(request) for request in requests])
        return list(classes.merge(prediction for group in groups for prediction in group))

    def headers(self, model: ServedModel, task: str, rule: str) -> dict[str, str]:
        """Return the response headers that say which model ran which task, and why; the log repeats them."""
        name = model.name.encode("ascii", "replace").decode()
        return {"x-florence2-model": name, "x-florence2-task": task, "x-florence2-task-rule": rule}

    def count_prompt_tokens(self, model: ServedModel, predictions: Sequence[Prediction], image: NamedImage) -> int:
        """Count the tokens of the images and prompts of predictions; one that was refused counts none."""
        total = 0
        for each in predictions:
            with contextlib.suppress(UserError):
                total += model.engine.count_prompt_tokens(Sample(each.file_name, image.image, each.task, each.input))
        return total


class _PipelineRun:
    """The requests of one pipeline on one image: it follows cascades, and counts predictions against the limit."""

    def __init__(
        self, service: ModelService, model: ServedModel, generation: GenerationConfig, on_text: OnText | None
    ) -> None:
        self._service, self._model, self._generation, self._on_text = service, model, generation, on_text
        self._num_predictions = 0

    async def predict(self, sample: Sample) -> list[Prediction]:
        """Predict a sample, then its follow-ups, all at the same time."""
        self._num_predictions += 1
        limit = self._service.limits.max_predictions
        if self._num_predictions > limit:
            raise RequestError(
                f"the request leads to more than {limit} predictions", "send fewer tasks, or a shorter cascade"
            )
        request = replace(sample, follow_up=None)
        prediction = await self._model.engine.generate(request, self._generation, on_text=self._on_text)
        self._count(prediction)
        follow_ups = list(sample.follow_up(prediction)) if sample.follow_up and prediction.error is None else []
        groups = await gather_or_cancel([self.predict(each) for each in follow_ups])
        return [prediction, *(each for group in groups for each in group)]

    def _count(self, prediction: Prediction) -> None:
        task = find_task(prediction.task)
        self._service.metrics.count_prediction(
            self._model.name,
            "prompt" if task.is_custom else task.name,
            prediction.num_tokens,
            has_error=prediction.error is not None,
        )


async def gather_or_cancel(work: Sequence[Awaitable[list[Prediction]]]) -> list[list[Prediction]]:
    """Wait for all results; where one fails or the caller is cancelled, cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def is_task_name(text: str) -> bool:
    """Return whether a text names a task, or a cascade of tasks."""
    return all(not split_prompt(part)[0].is_custom for part in text.split("+"))


async def texts_so_far(work: Callable[[OnText], Awaitable[object]]) -> AsyncIterator[str]:
    """Yield the longer and longer texts that `work` reports, until it ends; its error is raised."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(queue.put_nowait))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (text := await queue.get()) is not None:
            yield text
        await task
    finally:
        task.cancel()
