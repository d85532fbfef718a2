"""The requests of a run: samples are tokenized and their images opened by threads ahead of the model, in order.

A sample whose image cannot be opened, or whose prompt or generation config is refused, becomes a `Prediction` with an
error.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Self

from florence2.data.decoding.decoder_process import DecoderStartError
from florence2.data.sample import Prediction, Sample
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig, LengthLimits, ModelGenerationConfig
from florence2.engine.workers.image_loader import ImageInputs, ImageLoader
from florence2.errors import UserError
from florence2.model.processing import Preprocessor
from florence2.model.tasks import Task, find_task

OnTokens = Callable[[list[int]], None]
RECENT_IMAGES = 8  # samples this far apart still share one opened image


@dataclass(frozen=True, eq=False)
class EngineInput:
    """A sample with a generation config of its own; None is that of the run.

    `on_tokens` gets all caption tokens so far while the sample is decoded with one row: the continuous engine calls it
    in its own thread, after each step on a CPU and some steps late on a GPU.
    """

    sample: Sample
    generation: GenerationConfig | None = None
    on_tokens: OnTokens | None = None

    @classmethod
    def of(cls, item: Sample | EngineInput, generation: GenerationConfig | None) -> EngineInput:
        """Add the config of a run to a sample that brings none."""
        if isinstance(item, EngineInput):
            return item if item.generation is not None else replace(item, generation=generation)
        return cls(item, generation)

    def follow_ups(self, prediction: Prediction) -> list[EngineInput]:
        """List the follow-ups of the sample, with the same config; a prediction with an error has none."""
        if self.sample.follow_up is None or prediction.error is not None:
            return []
        return [EngineInput(sample, self.generation) for sample in self.sample.follow_up(prediction)]


@dataclass(frozen=True, eq=False)
class Request:
    """A sample as the model takes it."""

    sample: Sample
    task: Task
    prompt_ids: list[int]
    image_inputs: ImageInputs
    limits: LengthLimits
    generation: GenerationConfig
    on_tokens: OnTokens | None = None


@dataclass(frozen=True, eq=False)
class RequestOutput:
    """A sample and its prediction."""

    sample: Sample
    prediction: Prediction


IsActive = Callable[[Sample], bool]


def always_active(_: Sample) -> bool:
    """Keep every sample."""
    return True


class RequestBuilder:
    """Makes requests of samples: loads images, tokenizes prompts, computes limits; `close()` ends its processes."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        model_config: ModelGenerationConfig,
        config: EngineConfig,
        *,
        check: Callable[[GenerationConfig], None] | None = None,
        pin_memory: bool = False,
    ) -> None:
        """Take what is the same for all requests.

        `check` raises a `UserError` for a generation config that cannot be served. `pin_memory` puts pixels where a
        GPU reads them without the host.
        """
        self.images = ImageLoader(preprocessor, config, pin_memory=pin_memory)
        self._model_config, self._config, self._check = model_config, config, check
        # Most samples have the same prompt.
        self._prompt_ids = lru_cache(1024)(partial(preprocessor.prompt_ids, max_length=model_config.max_positions))

    def close(self) -> None:
        """End the processes that decode images."""
        self.images.close()

    def count_prompt_tokens(self, sample: Sample) -> int:
        """Count the tokens that the encoder gets for a sample: those of the image and those of the prompt."""
        return len(self._prompt_ids(find_task(sample.task), sample.input))

    def build(self, entry: EngineInput, image_inputs: ImageInputs) -> Request:
        """Make the request of a sample whose image is open."""
        sample, generation = entry.sample, entry.generation or self._config.generation
        if self._check is not None:
            self._check(generation)
        task = find_task(sample.task)
        prompt_ids = self._prompt_ids(task, sample.input)
        length = self._config.forced_lengths(sample) if self._config.forced_lengths else None
        limits = self._model_config.length_limits(task, generation, length)
        return Request(sample, task, prompt_ids, image_inputs, limits, generation, entry.on_tokens)


class RequestQueue:
    """The requests of one run, prepared ahead by threads; `close()` or a `with` block stops the threads."""

    def __init__(
        self,
        builder: RequestBuilder,
        samples: Iterable[Sample | EngineInput],
        prefetch: int,
        generation: GenerationConfig | None = None,
        is_active: IsActive = always_active,
    ) -> None:
        """Start to prepare samples; `prefetch` requests are ready before they are needed, besides those in work."""
        self.is_active = is_active
        self._builder, self._samples, self._generation = builder, samples, generation
        self._capacity = threading.Semaphore(2 * builder.images.num_workers + prefetch)
        self._arrived: queue.Queue[tuple[EngineInput, Future[ImageInputs]] | Exception | None] = queue.Queue()
        self._head: deque[tuple[EngineInput, Future[ImageInputs]]] = deque()
        self._follow_ups: deque[tuple[EngineInput, ImageInputs]] = deque()  # their images are open
        self._returned: deque[Request] = deque()
        self._ended = self._stopped = False
        self._pool = builder.images.threads()
        # A daemon, because an endless iterable of samples may never return.
        threading.Thread(target=self._produce, name="read-samples", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Request | RequestOutput]:
        while (item := self.get(wait=True)) is not None:
            yield item

    def close(self) -> None:
        """Stop the threads; no more samples are read."""
        self._stopped = True
        self._capacity.release()
        self._pool.close()

    @property
    def exhausted(self) -> bool:
        """Return whether there are no more requests, except for follow-ups of running ones."""
        return self._ended and not self._follow_ups and not self._returned

    def add_follow_ups(self, request: Request, prediction: Prediction) -> None:
        """Put the follow-ups of a prediction first; they use the image that is open."""
        for entry in EngineInput(request.sample, request.generation).follow_ups(prediction):
            self._follow_ups.append((entry, request.image_inputs))

    def put_back(self, requests: Iterable[Request]) -> None:
        """Put requests first that could not be served."""
        self._returned.extendleft(reversed(list(requests)))

    def get(self, *, wait: bool) -> Request | RequestOutput | None:
        """Return the next request, or the output of a sample that failed; None means not yet, or no more."""
        if self._returned:
            return self._returned.popleft()
        if self._follow_ups:
            entry, image_inputs = self._follow_ups.popleft()
            return self._build(entry, lambda: image_inputs)
        while self._head or self._poll(wait):
            entry, loading = self._head[0]
            if not wait and not loading.done():
                return None
            self._head.popleft()
            self._capacity.release()
            if self.is_active(entry.sample):
                return self._build(entry, loading.result)
        return None

    def _build(self, entry: EngineInput, image_inputs: Callable[[], ImageInputs]) -> Request | RequestOutput:
        sample = entry.sample
        try:
            return self._builder.build(entry, image_inputs())
        except DecoderStartError:
            raise  # no further image can be decoded
        except UserError as error:
            return RequestOutput(sample, Prediction(sample.id, sample.task, sample.input, error=error.what))

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
                self._capacity.acquire()
                if self._stopped:
                    return
                entry = EngineInput.of(sample, self._generation)
                self._arrived.put((entry, self._load_image(entry.sample, recent)))
            self._arrived.put(None)
        except Exception as error:  # of the iterable, raised again by `get`
            self._arrived.put(error)

    def _load_image(
        self, sample: Sample, recent: OrderedDict[Any, tuple[object, Future[ImageInputs]]]
    ) -> Future[ImageInputs]:
        """Start to open an image, or return a recent one: samples with the same image share its inputs."""
        key = _identity(sample.image)
        if key in recent:
            recent.move_to_end(key)
        else:  # the image is stored beside its inputs, so that no other object gets its id
            recent[key] = sample.image, self._pool.submit(sample)
        if len(recent) > RECENT_IMAGES:
            recent.popitem(last=False)
        return recent[key][1]


def _identity(image: object) -> Any:
    return image if isinstance(image, Hashable) else id(image)
