"""The samples of one shard: the steps of the task pipeline for each of its images, read lazily."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from florence2.data.columns import ColumnMapping, DatasetRow, partition_samples, samples_from_rows
from florence2.data.sample import ResolvedDataset, Sample, relative_image_dir
from florence2.data.stores.store_path import AnyPath, StorePath, is_address
from florence2.data.streams.open_source import find_image_shards
from florence2.data.streams.shard_paths import common_folder
from florence2.data.streams.shard_readers import ShardedSource
from florence2.log import count_kinds
from florence2.model.tasks import split_prompt
from florence2.pipeline.task_pipeline import TaskPipeline
from florence2.results.journal import make_run_id


@dataclass(frozen=True)
class SampleReader:
    """Reads the samples of a shard, those of one image in a row; it can be sent to another machine."""

    pipeline: TaskPipeline
    columns: ColumnMapping
    rows: Callable[[], Iterator[DatasetRow]]

    def __call__(self, ignored: "IgnoredFiles | None" = None) -> Iterator[Sample]:
        """Yield the samples, and count what is not read; the rows of one image must be adjacent."""
        for _, group in groupby(self.rows(), key=lambda row: row.image.id):
            rows = list(group)
            if ignored is not None:
                for row in rows:
                    ignored.add(row.where, row.ignored_shapes)

            def resolve(task: str, task_input: str, rows: list[DatasetRow] = rows) -> ResolvedDataset:
                columns = step_columns(task, task_input, self.columns)
                return ResolvedDataset("", None, partition_samples(samples_from_rows(rows, columns, ""))[0])

            yield from self.pipeline.apply_to(resolve)[1].samples


class IgnoredFiles:
    """Counts the files of shards that are not read, by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first = ""

    def add(self, where: str, kinds: Iterable[str]) -> None:
        """Count files by their kinds; `where` names the place of the first."""
        before = self.counts.total()
        self.counts.update(kinds)
        if not before and self.counts:
            self.first = where

    def note(self) -> str:
        """Return the counts in one line; "" if there are none."""
        return f"not read: {count_kinds(self.counts.elements())}; the first in {self.first}" if self.counts else ""


def step_columns(task: str, task_input: str, columns: ColumnMapping) -> ColumnMapping:
    """Return the columns with the task and the input of rows that have none."""
    parsed, prompt_input = split_prompt(task)
    return replace(columns, task=parsed.token, input=prompt_input or task_input)


@dataclass(frozen=True)
class ShardedImages:
    """The images of a job: their source, and the pipeline that makes samples of them."""

    source: ShardedSource
    pipeline: TaskPipeline

    @classmethod
    def find(cls, spec: str, pipeline: TaskPipeline, *, recursive: bool) -> "ShardedImages":
        """Find the shards of `--input_path`."""
        step = pipeline.steps[0]
        columns = step_columns(step.task.token, step.input, ColumnMapping("", with_targets=False))
        return cls(find_image_shards(spec, columns, recursive=recursive), pipeline)

    @property
    def names(self) -> list[str]:
        """Return the names of the shards."""
        return [self.source.shard_name(index) for index in range(self.source.num_shards)]

    def reader(self, index: int) -> SampleReader:
        """Return the reader of a shard."""
        return SampleReader(self.pipeline, self.source.columns, self.source.reader(index))

    def image_dir(self, target: AnyPath) -> str:
        """Return the path from an output to the images, or their address; "." where ids are not paths."""
        root = self.source.root
        return "." if root is None else _path_from(target, root)

    def job_id(self, run_id: str, target: AnyPath) -> str:
        """Return the id of a job that runs the pipeline of this object on its shards, for the output `target`.

        The lines of an output name their run, task and images themselves; this is what all lines of a job have.
        """
        paths = self.source.paths
        folder = str(common_folder(paths)) if paths else self.source.root
        place = self.source.name if folder is None else _path_from(target, folder)
        return make_run_id(run_id, sorted(step.words for step in self.pipeline.steps), place)


def _path_from(target: AnyPath, folder: str) -> str:
    """Return the path from a file to a folder, or the address or absolute path of the folder."""
    if is_address(folder):
        return folder
    if isinstance(target, StorePath):
        return Path(folder).absolute().as_posix()
    return relative_image_dir(target, Path(folder))
