"""`florence2 predict --cluster`: the job of `predict_shards.py` with the engines on the nodes of a Ray cluster.

Read tasks and engines run anywhere; predictions come back to this process, which is the only writer. Ray repeats the
tasks of workers and nodes that are lost; a driver that is killed is started again, and redoes open shards alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from florence2.data.sample import SampleKey
from florence2.errors import DatasetError, OptionError, UserError
from florence2.log import logger
from florence2.recipes.cluster.engine_actor import CONCURRENT_PACKS, PACKS_IN_FLIGHT, ActorConfig, PackActor
from florence2.recipes.cluster.ray_cluster import READ_CPUS, EnginePool, connect, find_pool
from florence2.recipes.cluster.sample_packs import PackReader, packs_dataset
from florence2.recipes.predict_spec import PredictSpec
from florence2.recipes.shards.job_output import open_job_output
from florence2.recipes.shards.predict_shards import ShardRun
from florence2.recipes.shards.shard_samples import ShardedImages
from florence2.results.progress import PredictProgressBar, RunSummary

_GROUP_SHARDS = 1000  # with earlier predictions
_IN_FLIGHT = {"gpu": 1024, "cpu": 64}  # images at one engine where `--max_in_flight` is not passed


def run_predict_cluster(spec: PredictSpec, address: str, max_in_flight: int | None) -> RunSummary:
    """Predict all shards that are not done on a cluster."""
    _check_spec(spec)
    images = ShardedImages.find(spec.input.input_path, spec.pipeline, recursive=spec.input.recursive)
    with open_job_output(spec, images) as job, PredictProgressBar() as progress:
        with ShardRun(job, images) as run:
            if job.todo:
                with connect(address) as ray:
                    pool = find_pool(ray, spec.engine.devices[0])
                    _run(ray, _actor_config(spec, pool, max_in_flight), run, images, progress)
        job.complete()
        return run.add_counts(progress.summary())


def _actor_config(spec: PredictSpec, pool: EnginePool, max_in_flight: int | None) -> ActorConfig:
    number = max_in_flight or default_in_flight(pool)
    return ActorConfig(spec.engine.model, spec.engine.config, spec.pipeline, pool, number)


def default_in_flight(pool: EnginePool) -> int:
    """Return the number of images that fill an engine."""
    return _IN_FLIGHT["gpu" if pool.num_gpus else "cpu"]


def _check_spec(spec: PredictSpec) -> None:
    if spec.engine.rank is not None:
        raise OptionError("`--cluster` starts the engines itself", "start the command without a launcher")
    if spec.engine.kind != "continuous":
        raise OptionError("`--engine generate` runs in one process", "remove `--engine` or `--cluster`")
    if len(spec.engine.devices) > 1:
        raise OptionError("Ray chooses the devices of a cluster", "remove `--devices`")


@dataclass(eq=False)
class PackCount:
    """Which packs of a shard have come, and how many there are; None while that is not known."""

    numbers: set[int] = field(default_factory=set)
    total: int | None = None
    error: str | None = None

    def add(self, row: dict[str, Any]) -> bool:
        """Add a pack; return whether it is the last one that was missing."""
        self.numbers.add(int(row["pack"]))
        if row["is_last"]:
            self.total, self.error = int(row["pack"]) + 1, row["error"] or None
        return len(self.numbers) == self.total


def _run(ray: Any, config: ActorConfig, run: ShardRun, images: ShardedImages, progress: PredictProgressBar) -> None:
    """Predict the shards without earlier predictions at once, and the others in groups: all theirs are in memory."""
    earlier = [index for index in run.job.todo if run.job.has_journal(index)]
    others = sorted(set(run.job.todo).difference(earlier))
    groups = [others, *(earlier[start : start + _GROUP_SHARDS] for start in range(0, len(earlier), _GROUP_SHARDS))]
    for group in filter(None, groups):
        readers = list(_readers(group, config, run, images))
        if readers:
            _run_group(ray, config, run, readers, progress)


def _run_group(
    ray: Any, config: ActorConfig, run: ShardRun, readers: list[PackReader], progress: PredictProgressBar
) -> None:
    counts = {reader.shard: PackCount() for reader in readers}
    for row in _predicted_rows(ray, config, readers):
        index = int(row["shard"])
        if index not in counts or row["pack"] in counts[index].numbers:
            continue  # a task that Ray repeated
        run.output(index)
        for prediction in pickle.loads(row["predictions"]):
            run.write(index, prediction)
            progress.update(prediction)
        if row["is_last"]:
            ignored = pickle.loads(row["ignored"])
            run.ignored.add(ignored.first, ignored.counts.elements())
        if counts[index].add(row):
            run.close_shard(index, counts.pop(index).error)
    if counts:
        raise UserError(f"{len(counts)} shards have no result", "run the command again; finished shards are kept")


def _readers(shards: Sequence[int], config: ActorConfig, run: ShardRun, images: ShardedImages) -> Iterator[PackReader]:
    for index in shards:
        predicted = frozenset[SampleKey]()
        try:
            if run.job.has_journal(index) and not images.pipeline.has_follow_ups:
                predicted = run.predicted_keys(index)
        except DatasetError as error:
            run.close_shard(index, error.line)
            continue
        yield PackReader(index, images.reader(index), config.pack_size, predicted)


def _predicted_rows(ray: Any, config: ActorConfig, readers: list[PackReader]) -> Iterator[dict[str, Any]]:
    """Yield the rows of packs as they are predicted, in no order."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # each pack is a block, and so a task of its own
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    with ray.data.DataContext.current(context):
        dataset = packs_dataset(ray, readers, READ_CPUS).map_batches(
            PackActor,
            fn_constructor_args=(config,),
            batch_size=1,
            compute=actor_pool(ray, config.pool),
            num_cpus=config.pool.reserved_cpus,
            num_gpus=config.pool.num_gpus,
        )
        try:
            yield from dataset.iter_rows()
        except Exception as error:  # Ray wraps the errors of its workers in errors of its own
            raise _own_error(error) from error


def actor_pool(ray: Any, pool: EnginePool) -> Any:
    """Return the strategy of a pool: all engines at once, down to one where nodes are lost.

    An engine on a CPU leaves a part of its cores to read tasks, so that Ray, left free, would start more engines than
    fit: their number is fixed. An engine on a GPU has all of it, so that Ray starts one for each GPU that joins.
    """
    return ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=None if pool.is_growing else pool.size,
        initial_size=pool.size,
        max_tasks_in_flight_per_actor=PACKS_IN_FLIGHT,
        max_concurrent_calls_per_actor=CONCURRENT_PACKS,
    )


def _own_error(error: BaseException) -> BaseException:
    """Return the UserError that a worker raised, where it is the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            logger.debug(str(error))
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
