"""`Florence2`: a loaded checkpoint that answers questions about images, and that the commands run on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar, overload

import numpy as np
from PIL import Image

from florence2 import api
from florence2.config import DEFAULT_TASK, HubSettings, InferenceDType
from florence2.data.decoding.array_image import image_from_array
from florence2.data.sample import ImageError, Sample
from florence2.data.stores.remote_image import RemoteImage
from florence2.devices import is_8_bit
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.quantization.quantize_model import quantize_model
from florence2.errors import OptionError
from florence2.model.adapter.reused_weights import reuse_weights
from florence2.model.inference.inference_model import InferenceModel
from florence2.pipeline.task_pipeline import TaskPipeline
from florence2.recipes.create_engine import ModelSource
from florence2.results.result import Result

if TYPE_CHECKING:
    from transformers import Florence2ForConditionalGeneration, Florence2Processor

ImageInput: TypeAlias = str | Path | bytes | Image.Image | np.ndarray
P = ParamSpec("P")
R = TypeVar("R")


def _with_own_checkpoint(command: Callable[P, R], checkpoint_flag: str) -> Callable[Concatenate[Florence2, P], R]:
    """Make a method of a command that takes the checkpoint, revision and offline mode of the object by default."""

    @wraps(command)
    def method(self: Florence2, /, *args: P.args, **options: P.kwargs) -> R:
        own = {checkpoint_flag: self.name, "revision": self.revision, "offline": self.offline}
        return command(*args, **(own | options))  # type: ignore[arg-type]

    return method


class Florence2:
    """A checkpoint with its processor and an engine; call it with images. A context manager that frees the memory.

    `model` and `processor` are transformers' own objects, loaded when they are first used. One thread at a time may
    use it; `AsyncEngine` serves many.
    """

    def __init__(
        self,
        name: str | Path = "microsoft/Florence-2-base-ft",
        *,
        device: str | None = None,
        dtype: InferenceDType = "auto",
        revision: str | None = None,
        offline: bool = False,
        generation: GenerationConfig | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Load a hub id, a folder with a checkpoint or an adapter, or `demo`; see `load` for layouts and errors.

        `generation` is the config of calls that bring none, and bounds the beams and tokens of those that do;
        `batch_size` is the number of requests that are decoded at a time. With `dtype="int8"`, for a CPU, or
        `"fp8"`, for a GPU, the layers of `model` are replaced for good by some that multiply in 8 bits.
        """
        self.name, self.revision, self.offline = str(name), revision, offline
        self._source = ModelSource.resolve(self.name, HubSettings(revision, offline), dtype)
        config = EngineConfig(generation or GenerationConfig(), batch_size=batch_size)
        self._loaded = self._source.load(device)
        self._engine = Engine(*self._loaded, config)

    def __repr__(self) -> str:
        model = self._engine.model
        return f"Florence2({self.name!r}, device={str(model.device)!r}, dtype={str(model.dtype)!r})"

    @property
    def model(self) -> Florence2ForConditionalGeneration:
        """Return transformers' model, which has the weights of the engine; its first use imports transformers."""
        return self._transformers[0]

    @property
    def processor(self) -> Florence2Processor:
        """Return transformers' processor; its first use imports transformers."""
        return self._transformers[1]

    @cached_property
    def _transformers(self) -> tuple[Any, Any]:
        """Load transformers' objects, and let their weights be the memory of the engine's."""
        model = self._loaded[0]
        if not isinstance(model, InferenceModel):
            return self._loaded
        loaded = self._source.load_transformers(str(model.device))
        reuse_weights(loaded[0], model)
        if is_8_bit(self._source.dtype):
            quantize_model(loaded[0], self._source.dtype)
        return loaded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory of the engine; `model` and `processor` remain."""
        self._engine.close()

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, image: ImageInput, task: str = ..., input: str = ..., *, generation: GenerationConfig | None = ...
    ) -> Result: ...
    @overload
    def __call__(
        self,
        image: Sequence[ImageInput],
        task: str = ...,
        input: str = ...,
        *,
        generation: GenerationConfig | None = ...,
    ) -> list[Result]: ...
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        task: str = DEFAULT_TASK,
        input: str = "",  # noqa: A002 - the field's word
        *,
        generation: GenerationConfig | None = None,
    ) -> Result | list[Result]:
        """Run a task on an image, or on each of a list of images, and return one result for each, in order.

        An image is a path or an address, encoded bytes, a PIL image, or an RGB array of shape (height, width, 3) and
        type uint8. `task` is any task name or token, or another prompt; `input` are the task's words, or its region as
        location tokens or as `x1,y1,x2,y2` in pixels. One image that cannot be read raises ImageError; among several,
        its result has an `error`. Raises OptionError for an absent input, and for a cascade, which `stream` takes.
        """
        pipeline = TaskPipeline.parse([task], input)
        if pipeline.is_multi_task:
            raise OptionError(f"`{task}` leads to several predictions", "iterate over `stream`, or call `predict`")
        if isinstance(image, ImageInput) or not isinstance(image, Iterable):
            [result] = self._run(_samples([image], pipeline), generation)
            if result.error is not None:
                raise ImageError(result.error, "check the file, or catch this error")
            return result
        samples = list(_samples(image, pipeline))
        results = {result.sample: result for result in self._run(samples, generation)}
        return [results[sample] for sample in samples]

    def stream(
        self,
        images: Iterable[ImageInput],
        task: str = DEFAULT_TASK,
        input: str = "",  # noqa: A002
        *,
        generation: GenerationConfig | None = None,
    ) -> Iterator[Result]:
        """Run a task on images that are read as they are needed, and yield results as they finish, in no order.

        The results of a cascade, such as `caption+caption_to_phrase_grounding`, have the task and input of each step.
        """
        return self._run(_samples(images, TaskPipeline.parse([task], input)), generation)

    def _run(self, samples: Iterable[Sample], generation: GenerationConfig | None) -> Iterator[Result]:
        outputs = self._engine.outputs(samples, generation)
        return (Result(output.sample, output.prediction) for output in outputs)

    train = _with_own_checkpoint(api.train, "model_id")
    predict = _with_own_checkpoint(api.predict, "model_path")
    evaluate = _with_own_checkpoint(api.evaluate, "model_path")


def _samples(images: Iterable[ImageInput], pipeline: TaskPipeline) -> Iterator[Sample]:
    """Name each image by its path, or by its number among the images."""
    for number, image in enumerate(images):
        name = str(image) if isinstance(image, str | Path) else f"image {number}"
        yield from pipeline.samples(name, _image_source(image, name))


def _image_source(image: ImageInput, name: str) -> Any:
    if isinstance(image, str | Path):
        return RemoteImage.or_path(str(image))
    if isinstance(image, np.ndarray):
        return image_from_array(image, name)
    if isinstance(image, ImageInput):
        return image
    raise OptionError(f"{name} is a {type(image).__name__}", "pass a path, bytes, a PIL image, or an RGB array")
