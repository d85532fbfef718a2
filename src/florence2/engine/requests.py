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
from florence2.engine.engine_config import EngineSettings, Limits, Rules
from florence2.errors import UserError
from florence2.model.processing import Processing
from florence2.model.tasks import Task, find_task

RECENT_VIEWS = 8  # samples this far apart still share one opened picture


@dataclass(eq=False)
class View:
    """One picture made ready: uint8 pixels of the model's size, and its features once the model has seen it."""

    pixels_HWC: torch.Tensor
    size: Size
    features_ND: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """One sample in the model's terms."""

    sample: Sample
    task: Task
    prompt_ids: list[int]
    view: View
    limits: Limits


@dataclass(frozen=True, eq=False)
class Answered:
    """One sample and what came of it."""

    sample: Sample
    prediction: Prediction


Wanted = Callable[[Sample], bool]


def everything(_: Sample) -> bool:
    """Want every sample to its end."""
    return True


class Questions:
    """The questions of one run, opened ahead by threads; a context manager that stops them."""

    def __init__(
        self,
        processing: Processing,
        rules: Rules,
        settings: EngineSettings,
        samples: Iterable[Sample],
        ahead: int,
        wanted: Wanted = everything,
        *,
        pinned: bool = False,
    ) -> None:
        """Take samples; `ahead` questions are ready before they are asked for, besides those being opened.

        `pinned` pixels lie where a GPU fetches them itself.
        """
        self._processing, self._rules, self._settings, self._samples = processing, rules, settings, samples
        self._pinned = pinned
        # Most samples ask the same.
        self._prompt_ids = lru_cache(1024)(partial(processing.prompt_ids, max_length=rules.positions))
        self._workers = max(1, settings.num_workers)
        self._room = threading.Semaphore(2 * self._workers + ahead)
        self._arrived: queue.Queue[tuple[Sample, Future[View]] | Exception | None] = queue.Queue()
        self._head: deque[tuple[Sample, Future[View]]] = deque()
        self._next: deque[tuple[Sample, View]] = deque()  # what answers led to; their pictures are open
        self._ended = self._stopped = False
        self.wanted = wanted

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="open-pictures")
        # A daemon, because an endless source of samples may never give it back.
        threading.Thread(target=self._feed, name="feed-samples", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._room.release()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Question | Answered]:
        while (found := self.take(wait=True)) is not None:
            yield found

    @property
    def exhausted(self) -> bool:
        """Tell whether there is no more to ask, unless an answer leads to it."""
        return self._ended and not self._next

    def follow(self, question: Question, prediction: Prediction) -> None:
        """Ask next what an answer leads to, about the picture as it is already open."""
        if question.sample.then:
            self._next.extend((sample, question.view) for sample in question.sample.then(prediction))

    def take(self, *, wait: bool) -> Question | Answered | None:
        """Give the next question, or the error of one that cannot be asked; None: not yet, or no more."""
        if self._next:
            return self._asked(*self._next.popleft())
        while self._head or self._arrive(wait):
            sample, opening = self._head[0]
            if not wait and not opening.done():
                return None
            self._head.popleft()
            self._room.release()
            if self.wanted(sample):
                return self._opened(sample, opening)
        return None

    def _opened(self, sample: Sample, opening: Future[View]) -> Question | Answered:
        try:
            return self._asked(sample, opening.result())
        except UserError as error:
            return failure(sample, error)

    def _asked(self, sample: Sample, view: View) -> Question | Answered:
        try:
            return self._question(sample, view)
        except UserError as error:
            return failure(sample, error)

    def _arrive(self, wait: bool) -> bool:
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

    def _feed(self) -> None:
        recent: OrderedDict[Any, tuple[object, Future[View]]] = OrderedDict()
        try:
            for sample in self._samples:
                self._room.acquire()
                if self._stopped:
                    return
                self._arrived.put((sample, self._opening(sample, recent)))
            self._arrived.put(None)
        except Exception as error:  # of the source, raised again where the samples are waited for
            self._arrived.put(error)

    def _opening(self, sample: Sample, recent: OrderedDict[Any, tuple[object, Future[View]]]) -> Future[View]:
        """Start opening a picture, or find it among those opened just now: several tasks share one view."""
        key = _identity(sample.picture)
        if key in recent:
            recent.move_to_end(key)
        else:  # the picture is kept beside its view, so that no other object takes its identity
            recent[key] = sample.picture, self._pool.submit(self._view, sample)
        if len(recent) > RECENT_VIEWS:
            recent.popitem(last=False)
        return recent[key][1]

    def _view(self, sample: Sample) -> View:
        picture = sample.open(at_least=None if self._settings.exact_pixels else self._processing.at_least)
        pixels_HWC = torch.from_numpy(self._processing.resize(picture.image))
        return View(pixels_HWC.pin_memory() if self._pinned else pixels_HWC, picture.size)

    def _question(self, sample: Sample, view: View) -> Question:
        task = find_task(sample.task)
        ids = self._prompt_ids(task, sample.input)
        length = self._settings.lengths(sample) if self._settings.lengths else None
        return Question(sample, task, ids, view, self._rules.limits(task, self._settings.generation, length))


def failure(sample: Sample, error: UserError) -> Answered:
    """Say why a sample has no answer."""
    return Answered(sample, Prediction(sample.id, sample.task, sample.input, error=error.what))


def _identity(picture: object) -> Any:
    return picture if isinstance(picture, Hashable) else id(picture)
