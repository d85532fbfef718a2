"""Samples become questions the model can be asked.

Threads open pictures ahead of the model, through a bounded window and in order; a picture that cannot be opened, or a
prompt that cannot be asked, is a `Prediction` with an error. Knows nothing of how answers are found.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Self

import torch

from florence2.data.sample import Prediction, Sample, Size
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import LengthLimits, ModelGenerationConfig
from florence2.errors import UserError
from florence2.model.processing import Preprocessor
from florence2.model.tasks import Task, find_task

RECENT_IMAGES = 8  # samples this far apart still share one opened picture


@dataclass(eq=False)
class ImageInputs:
    """One picture made ready: uint8 pixels of the model's size, and its features once the model has seen it."""

    pixels_HWC: torch.Tensor
    size: Size
    features_ND: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """One sample in the model's terms."""

    sample: Sample
    task: Task
    prompt_ids: list[int]
    image_inputs: ImageInputs
    limits: LengthLimits


@dataclass(frozen=True, eq=False)
class RequestOutput:
    """One sample and what came of it."""

    sample: Sample
    prediction: Prediction


IsActive = Callable[[Sample], bool]


def always_active(_: Sample) -> bool:
    """Want every sample to its end."""
    return True


class RequestQueue:
    """The questions of one run, opened ahead by threads; a context manager that stops them."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        rules: ModelGenerationConfig,
        settings: EngineConfig,
        samples: Iterable[Sample],
        ahead: int,
        wanted: IsActive = always_active,
        *,
        pinned: bool = False,
    ) -> None:
        """Take samples; `ahead` questions are ready before they are asked for, besides those being opened.

        `pinned` pixels lie where a GPU fetches them itself.
        """
        self._preprocessor, self._rules, self._settings, self._samples = preprocessor, rules, settings, samples
        self._pinned = pinned
        # Most samples ask the same.
        self._prompt_ids = lru_cache(1024)(partial(preprocessor.prompt_ids, max_length=rules.max_positions))
        self._workers = max(1, settings.num_workers)
        self._room = threading.Semaphore(2 * self._workers + ahead)
        self._arrived: queue.Queue[tuple[Sample, Future[ImageInputs]] | Exception | None] = queue.Queue()
        self._head: deque[tuple[Sample, Future[ImageInputs]]] = deque()
        self._next: deque[tuple[Sample, ImageInputs]] = deque()  # what answers led to; their pictures are open
        self._ended = self._stopped = False
        self.is_active = wanted

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="open-pictures")
        # A daemon, because an endless source of samples may never give it back.
        threading.Thread(target=self._produce, name="feed-samples", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._room.release()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Request | RequestOutput]:
        while (found := self.get(wait=True)) is not None:
            yield found

    @property
    def exhausted(self) -> bool:
        """Tell whether there is no more to ask, unless an answer leads to it."""
        return self._ended and not self._next

    def add_follow_ups(self, question: Request, prediction: Prediction) -> None:
        """Ask next what an answer leads to, about the picture as it is already open."""
        if question.sample.follow_up:
            self._next.extend((sample, question.image_inputs) for sample in question.sample.follow_up(prediction))

    def get(self, *, wait: bool) -> Request | RequestOutput | None:
        """Give the next question, or the error of one that cannot be asked; None: not yet, or no more."""
        if self._next:
            return self._to_request(*self._next.popleft())
        while self._head or self._poll(wait):
            sample, opening = self._head[0]
            if not wait and not opening.done():
                return None
            self._head.popleft()
            self._room.release()
            if self.is_active(sample):
                return self._resolve(sample, opening)
        return None

    def _resolve(self, sample: Sample, opening: Future[ImageInputs]) -> Request | RequestOutput:
        try:
            return self._to_request(sample, opening.result())
        except UserError as error:
            return failed_output(sample, error)

    def _to_request(self, sample: Sample, view: ImageInputs) -> Request | RequestOutput:
        try:
            return self._build_request(sample, view)
        except UserError as error:
            return failed_output(sample, error)

    def _poll(self, wait: bool) -> bool:
        """Move the next sample to the head; False where there is none (yet)."""
        if self._ended:
            return False
        try:
            arrived = self._arrived.get(block=wait)
        except queue.Empty:
            return False
        if isinstance(arrived, Exception):
            raise arrived
        self._ended = arrived is None
        if arrived is not None:
            self._head.append(arrived)
        return not self._ended

    def _produce(self) -> None:
        recent: OrderedDict[Any, tuple[object, Future[ImageInputs]]] = OrderedDict()
        try:
            for sample in self._samples:
                self._room.acquire()
                if self._stopped:
                    return
                self._arrived.put((sample, self._submit(sample, recent)))
            self._arrived.put(None)
        except Exception as error:  # of the source, raised again where the samples are waited for
            self._arrived.put(error)

    def _submit(
        self, sample: Sample, recent: OrderedDict[Any, tuple[object, Future[ImageInputs]]]
    ) -> Future[ImageInputs]:
        """Start opening a picture, or find it among those opened just now: several tasks share one view."""
        key = _identity(sample.image)
        if key in recent:
            recent.move_to_end(key)
        else:  # the picture is kept beside its view, so that no other object takes its identity
            recent[key] = sample.image, self._pool.submit(self._load_image, sample)
        if len(recent) > RECENT_IMAGES:
            recent.popitem(last=False)
        return recent[key][1]

    def _load_image(self, sample: Sample) -> ImageInputs:
        image = sample.open(min_size=None if self._settings.full_decode else self._preprocessor.min_size)
        pixels_HWC = torch.from_numpy(self._preprocessor.resize(image.image))
        return ImageInputs(pixels_HWC.pin_memory() if self._pinned else pixels_HWC, image.size)

    def _build_request(self, sample: Sample, view: ImageInputs) -> Request:
        task = find_task(sample.task)
        ids = self._prompt_ids(task, sample.input)
        length = self._settings.forced_lengths(sample) if self._settings.forced_lengths else None
        return Request(sample, task, ids, view, self._rules.length_limits(task, self._settings.generation, length))


def failed_output(sample: Sample, error: UserError) -> RequestOutput:
    """Say why a sample has no answer."""
    return RequestOutput(sample, Prediction(sample.id, sample.task, sample.input, error=error.what))


def _identity(image: object) -> Any:
    return image if isinstance(image, Hashable) else id(image)
