"""Prediction of images that are read shard by shard, by the engines of this machine or of a launcher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Self

from florence2.data.sample import Prediction, Sample, SampleKey
from florence2.data.stores.store_path import is_address
from florence2.data.streams.open_source import is_streamed
from florence2.pipeline.class_splitter import ClassSplitter
from florence2.recipes.create_engine import create_engine
from florence2.recipes.predict_spec import PredictSpec
from florence2.recipes.shards.job_output import JobOutput, is_folder_output, open_job_output
from florence2.recipes.shards.shard_samples import IgnoredFiles, ShardedImages
from florence2.recipes.shards.shard_tracker import ShardTracker
from florence2.results.progress import PredictProgressBar, RunSummary
from florence2.results.shards.shard_output import ShardOutput


def is_sharded(spec: PredictSpec) -> bool:
    """Return whether images are read shard by shard, because of where they are or of where predictions go."""
    path = spec.output.output_path
    is_single_journal = not (is_folder_output(path) or is_address(path) or path.lower().endswith(".parquet"))
    return is_streamed(spec.input.input_path) or not is_single_journal


def run_predict_shards(spec: PredictSpec) -> RunSummary:
    """Predict all shards that are not done; a shard that cannot be read is counted and stops nothing."""
    images = ShardedImages.find(spec.input.input_path, spec.pipeline, recursive=spec.input.recursive)
    with open_job_output(spec, images) as job, PredictProgressBar() as progress:
        with ShardRun(job, images) as run:
            if job.todo or spec.engine.rank is not None:
                _predict(spec, run, progress)
        job.complete()
        return run.add_counts(progress.summary())


def _predict(spec: PredictSpec, run: ShardRun, progress: PredictProgressBar) -> None:
    tracker = ShardTracker(run.job.todo, run.samples, partial(ClassSplitter, spec.pipeline))
    with create_engine(spec.engine, 1) as engine:
        progress.show_stage("waiting for the first predictions")
        for shard, prediction in tracker.assign(engine.run(tracker.requests())):
            run.write(shard.index, prediction)
            progress.update(
                prediction, engine.stats.slots_in_use, engine.stats.slots, is_compiling=bool(engine.stats.num_compiling)
            )
            for done in tracker.pop_done():
                run.close_shard(done.index, done.error)
    for done in tracker.pop_done():
        run.close_shard(done.index, done.error)


class ShardRun:
    """The open outputs of a run, and its counts; a context manager, which closes what is open."""

    def __init__(self, job: JobOutput, images: ShardedImages) -> None:
        self.job, self._images = job, images
        self.ignored = IgnoredFiles()
        self._outputs: dict[int, ShardOutput] = {}
        self._failed: list[tuple[str, str]] = []
        self._num_done = 0
        self._num_todo = len(job.todo)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for output in self._outputs.values():
            output.close()

    def output(self, index: int) -> ShardOutput:
        """Return the output of a shard, and open it first where it is closed."""
        if index not in self._outputs:
            self._outputs[index] = self.job.open(index, self._images.image_dir(self.job.target(index)))
        return self._outputs[index]

    def samples(self, index: int) -> Iterator[Sample]:
        """Read the samples of a shard that have no prediction yet."""
        return self.output(index).journal.missing(self._images.reader(index)(self.ignored))

    def predicted_keys(self, index: int) -> frozenset[SampleKey]:
        """Return the samples of a shard with a prediction of this run; its output is closed afterwards."""
        with self.job.open(index, self._images.image_dir(self.job.target(index))) as output:
            return output.journal.predicted_keys()

    def write(self, index: int, prediction: Prediction) -> None:
        """Write a prediction to the output of its shard."""
        self._outputs[index].write(prediction)

    def close_shard(self, index: int, error: str | None) -> None:
        """Put the output of a shard in place, or note why it failed."""
        output = self._outputs.pop(index, None)
        if output is not None and error is None:
            self.job.finish(index, output)
            self._num_done += 1
            return
        error = error or "its output is not open"
        self.job.fail(index, output, error)
        self._failed.append((self._images.source.shard_name(index), error))

    def add_counts(self, summary: RunSummary) -> RunSummary:
        """Add the counts of shards to a summary."""
        total = self._images.source.num_shards
        return replace(
            summary,
            num_shards=total,
            num_shards_done=self._num_done,
            num_shards_earlier=total - self._num_todo,
            failed_shards=tuple(self._failed),
            ignored_files=self.ignored.note(),
        )
