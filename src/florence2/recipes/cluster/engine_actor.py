"""The actor of a pool: an engine that predicts packs of images, several at a time in one running batch."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from florence2.data.sample import Prediction, Sample
from florence2.engine.async_engine import AsyncEngine
from florence2.engine.engine_config import EngineConfig
from florence2.pipeline.class_splitter import ClassSplitter
from florence2.pipeline.task_pipeline import TaskPipeline
from florence2.recipes.cluster.ray_cluster import EnginePool
from florence2.recipes.create_engine import ModelSource
from florence2.system import tune_allocator

CONCURRENT_PACKS = 4  # in the batch of an engine
PACKS_IN_FLIGHT = 2 * CONCURRENT_PACKS  # with those that wait at it


@dataclass(frozen=True)
class ActorConfig:
    """What an actor needs to start; it is sent to the nodes."""

    model: ModelSource
    engine: EngineConfig
    pipeline: TaskPipeline
    pool: EnginePool
    max_in_flight: int

    @property
    def pack_size(self) -> int:
        """Return the number of images of a pack, so that an engine has at most `max_in_flight`."""
        return max(1, self.max_in_flight // PACKS_IN_FLIGHT)


class ImagePredictor:
    """An engine for asyncio that runs the samples of an image with their follow-ups."""

    def __init__(self, config: ActorConfig) -> None:
        """Load the model; the process belongs to this engine."""
        tune_allocator()
        if not config.pool.num_gpus:
            torch.set_num_threads(config.pool.num_cores)
        model, processor = config.model.load(config.pool.device)
        self._pipeline = config.pipeline
        self._engine = AsyncEngine(model, processor, config.engine, max_pending=config.max_in_flight)

    async def predict(self, samples: list[Sample]) -> list[Prediction]:
        """Predict all samples of one image; an image that fails gives predictions with `error`."""
        classes = ClassSplitter(self._pipeline)
        predictions = await asyncio.gather(*map(self._predict, classes.split(samples)))
        return list(classes.merge(chain.from_iterable(predictions)))

    async def _predict(self, sample: Sample) -> list[Prediction]:
        prediction = await self._engine.generate(sample)
        if sample.follow_up is None or prediction.error is not None:
            return [prediction]
        others = await asyncio.gather(*map(self._predict, sample.follow_up(prediction)))
        return [prediction, *chain.from_iterable(others)]


class PackActor:
    """Predicts rows of packs: `samples` is replaced by `predictions`."""

    def __init__(self, config: ActorConfig) -> None:
        self._predictor = ImagePredictor(config)

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Predict the packs of a batch."""
        packed = []
        for pack in batch.pop("samples"):
            images = await asyncio.gather(*map(self._predictor.predict, pickle.loads(pack)))
            packed.append(pickle.dumps(list(chain.from_iterable(images))))
        yield {**batch, "predictions": np.array(packed, dtype=object)}
