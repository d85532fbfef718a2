"""Predictions as columns of rows: the options of a call, the samples of rows, and the actor of a Ray pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from florence2.config import HubSettings
from florence2.data.columns import is_missing
from florence2.data.decoding.array_image import image_from_array
from florence2.data.sample import Prediction, Sample
from florence2.data.streams.table_shards import stored_image
from florence2.data.streams.tars.tar_source import UnreadableRow
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import OptionError, UserError
from florence2.files import to_json
from florence2.log import count_noun
from florence2.model.tasks import InputType
from florence2.pipeline.task_pipeline import TaskPipeline
from florence2.recipes.cluster.engine_actor import ActorConfig, ImagePredictor
from florence2.recipes.cluster.predict_cluster import actor_pool, default_in_flight
from florence2.recipes.cluster.ray_cluster import find_pool, import_ray
from florence2.recipes.create_engine import ModelSource
from florence2.settings_io import closest_name_hint, setting_names

COLUMNS = ("text", "answer", "num_tokens", "score", "error")


@dataclass(frozen=True)
class RowOptions:
    """Which task runs on which columns of rows, and what stands before the names of the new columns."""

    task: str
    task_input: str
    image_column: str
    input_column: str | None
    column_prefix: str

    def __post_init__(self) -> None:
        if not isinstance(self.task, str):
            raise OptionError(f"`task` is {self.task!r}", "pass one task, such as `caption`")
        if self.pipeline.is_multi_task:
            raise OptionError(f"`{self.task}` has more than one prediction for a row", "pass one task")
        step = self.pipeline.steps[0]
        is_needed = step.task.input_type is not InputType.NOTHING and not self.input_column
        if is_needed and not step.input.strip():
            raise OptionError(
                f"the task {step.task.name} needs {step.task.input_type}", "pass `task_input` or `input_column`"
            )

    @property
    def pipeline(self) -> TaskPipeline:
        """Return the pipeline of the task."""
        return TaskPipeline.parse((self.task,), "" if self.input_column else self.task_input)

    @property
    def columns(self) -> list[str]:
        """Return the names of the new columns."""
        return [f"{self.column_prefix}{name}" for name in COLUMNS]

    def check_columns(self, names: Sequence[str]) -> None:
        """Refuse rows without the columns that are read, or with columns that would be written over."""
        for option, name in (("image_column", self.image_column), ("input_column", self.input_column)):
            if name is not None and name not in names:
                listed = ", ".join(f"`{each}`" for each in names)
                raise OptionError(f"there is no column `{name}`; there are {listed}", f"pass the name as `{option}`")
        taken = [f"`{name}`" for name in self.columns if name in names]
        if taken:
            raise OptionError(
                f"{count_noun(len(taken), 'new column')} would replace {', '.join(taken)}",
                'pass `column_prefix="florence2_"`, or rename the columns',
            )

    def sample(self, index: int, row: Mapping[str, Any]) -> Sample:
        """Make the sample of a row; a row without a valid image or input gets an image with this error."""
        name, pipeline = f"row {index}", self.pipeline
        try:
            image = to_image(row[self.image_column], name)
            if self.input_column:
                task_input = row[self.input_column]
                pipeline = TaskPipeline.parse((self.task,), "" if is_missing(task_input) else str(task_input))
            return pipeline.samples(name, image)[0]
        except UserError as error:
            return Sample(name, UnreadableRow(f"{name}: {error.what}", error.hint), pipeline.steps[0].task.token)


def to_image(value: Any, name: str) -> Any:
    """Return the image of a column: pixels become an image in memory, everything else is opened later."""
    if isinstance(value, Image.Image):
        return value
    return image_from_array(value, "its image") if isinstance(value, np.ndarray) else stored_image(value, name)


def parse_generation(options: Mapping[str, Any] | None) -> GenerationConfig:
    """Return the generation config of a call; an unknown name is refused."""
    known = setting_names(GenerationConfig)
    for name in options or {}:
        if name not in known:
            raise OptionError(f"`generation` has no `{name}`", closest_name_hint(name, sorted(known)))
    return GenerationConfig(**(options or {}))


def to_columns(predictions: list[Prediction], options: RowOptions) -> dict[str, list[Any]]:
    """Return the new columns."""
    answers = [None if each.answer is None else to_json(each.answer.to_dict()) for each in predictions]
    others = [[getattr(each, name) for each in predictions] for name in ("text", "num_tokens", "score", "error")]
    return dict(zip(options.columns, (others[0], answers, *others[1:]), strict=True))


def predict_rows(
    dataset: Any,
    *,
    model_path: str,
    generation: Mapping[str, Any] | None,
    revision: str | None,
    offline: bool,
    device: str | None,
    dtype: Any,
    max_in_flight: int | None,
    num_engines: int | None,
    **options: Any,
) -> Any:
    """Map a Ray dataset to one with predictions; see `florence2.ray.predict`."""
    ray = import_ray()
    rows = RowOptions(**options)
    if not isinstance(dataset, ray.data.Dataset):
        raise OptionError(f"the dataset is a {type(dataset).__name__}", "pass a `ray.data.Dataset`")
    if columns := dataset.columns(fetch_if_missing=False):
        rows.check_columns(columns)
    for name, number in (("num_engines", num_engines), ("max_in_flight", max_in_flight)):
        if number is not None and number < 1:
            raise OptionError(f"`{name}` is {number}", "pass 1 or more")
    pool = find_pool(ray, device)
    if num_engines is not None:
        pool = replace(pool, size=num_engines, is_growing=False)
    config = ActorConfig(
        ModelSource.resolve(model_path, HubSettings(revision, offline), dtype),
        EngineConfig(generation=parse_generation(generation)),
        rows.pipeline,
        pool,
        max_in_flight or default_in_flight(pool),
    )
    return dataset.map_batches(
        RowActor,
        fn_constructor_args=(config, rows),
        batch_size=config.pack_size,
        batch_format="pyarrow",
        compute=actor_pool(ray, pool),
        num_cpus=pool.reserved_cpus,
        num_gpus=pool.num_gpus,
    )


class RowActor:
    """Predicts batches of rows."""

    def __init__(self, config: ActorConfig, options: RowOptions) -> None:
        self._predictor, self._options = ImagePredictor(config), options

    async def __call__(self, batch: Any) -> Any:
        """Add the columns of predictions to a table; the others stay as they are."""
        from ray.data.block import BlockAccessor

        options = self._options
        options.check_columns(batch.column_names)
        names = [name for name in (options.image_column, options.input_column) if name]
        values = BlockAccessor.for_block(batch).to_numpy(names)
        rows = [{name: values[name][index] for name in names} for index in range(batch.num_rows)]
        samples = [options.sample(index, row) for index, row in enumerate(rows)]
        predictions = await asyncio.gather(*(self._predictor.predict([sample]) for sample in samples))
        arrow = import_module("pyarrow")
        types = (arrow.string(), arrow.string(), arrow.int32(), arrow.float64(), arrow.string())
        columns = to_columns([each for [each] in predictions], options)
        for (name, column), kind in zip(columns.items(), types, strict=True):
            batch = batch.append_column(name, arrow.array(column, kind))
        yield batch
