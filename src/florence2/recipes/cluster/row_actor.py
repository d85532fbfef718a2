"""Predictions as columns of rows: the options of a call, the samples of rows, and the actor of a Ray pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from florence2.config import HubSettings
from florence2.data.sample import Prediction, Sample
from florence2.data.streams.table_shards import stored_image
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import OptionError
from florence2.files import to_json
from florence2.pipeline.task_pipeline import TaskPipeline
from florence2.recipes.cluster.engine_actor import ActorConfig, ImagePredictor
from florence2.recipes.cluster.predict_cluster import actor_pool, default_in_flight
from florence2.recipes.cluster.ray_cluster import find_pool, import_ray
from florence2.recipes.create_engine import ModelSource

COLUMNS = ("text", "answer", "num_tokens", "score", "error")


@dataclass(frozen=True)
class RowOptions:
    """Which task runs on which columns of rows."""

    task: str
    task_input: str
    image_column: str
    input_column: str | None

    def __post_init__(self) -> None:
        pipeline = TaskPipeline.parse((self.task,), "" if self.input_column else self.task_input)
        if pipeline.is_multi_task:
            raise OptionError(f"`{self.task}` has more than one prediction for a row", "pass one task")

    @property
    def pipeline(self) -> TaskPipeline:
        """Return the pipeline of the task."""
        return TaskPipeline.parse((self.task,), "" if self.input_column else self.task_input)

    def sample(self, index: int, row: Mapping[str, Any]) -> Sample:
        """Make the sample of a row."""
        step = self.pipeline.steps[0]
        task_input = str(row[self.input_column]) if self.input_column else step.input
        name = f"row {index}"
        return Sample(name, to_image(row[self.image_column], name), step.task.token, task_input)


def to_image(value: Any, name: str) -> Any:
    """Return the image of a column: pixels become an image in memory, everything else is opened later."""
    if isinstance(value, Image.Image):
        return value
    return Image.fromarray(value) if isinstance(value, np.ndarray) else stored_image(value, name)


def to_columns(predictions: list[Prediction]) -> dict[str, list[Any]]:
    """Return the new columns."""
    return {
        "text": [each.text for each in predictions],
        "answer": [None if each.answer is None else to_json(each.answer.to_dict()) for each in predictions],
        "num_tokens": [each.num_tokens for each in predictions],
        "score": [each.score for each in predictions],
        "error": [each.error for each in predictions],
    }


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
    pool = find_pool(ray, device)
    pool = replace(pool, size=num_engines or pool.size)
    config = ActorConfig(
        ModelSource.resolve(model_path, HubSettings(revision, offline), dtype),
        EngineConfig(generation=GenerationConfig(**(generation or {}))),
        rows.pipeline,
        pool,
        max_in_flight or default_in_flight(pool),
    )
    return dataset.map_batches(
        RowActor,
        fn_constructor_args=(config, rows),
        batch_size=config.pack_size,
        batch_format="numpy",
        compute=actor_pool(ray, pool),
        num_cpus=pool.reserved_cpus,
        num_gpus=pool.num_gpus,
    )


class RowActor:
    """Predicts batches of rows."""

    def __init__(self, config: ActorConfig, options: RowOptions) -> None:
        self._predictor, self._options = ImagePredictor(config), options

    async def __call__(self, batch: dict[str, Any]) -> Any:
        """Add the columns of predictions to a batch."""
        number = len(batch[self._options.image_column])
        rows = [{name: values[index] for name, values in batch.items()} for index in range(number)]
        samples = [self._options.sample(index, row) for index, row in enumerate(rows)]
        predictions = await asyncio.gather(*(self._predictor.predict([sample]) for sample in samples))
        columns = to_columns([each for [each] in predictions])
        yield {**batch, **{name: np.array(values, dtype=object) for name, values in columns.items()}}
