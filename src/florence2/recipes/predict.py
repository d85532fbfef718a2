"""Prediction: images in, `captions.jsonl` out.

`pipeline` chooses the requests, `data` opens images, `engine` predicts, `results` writes predictions down.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from florence2.config import PredictSettings
from florence2.data.listed.listed_samples import ListedSamples, select_samples
from florence2.data.resolve import resolve_images
from florence2.data.sample import Prediction, ResolvedDataset, Sample, relative_image_dir
from florence2.data.stores.offline import respects_offline
from florence2.data.stores.store_path import check_slashes
from florence2.distributed import is_main_process, launcher_rank
from florence2.engine.stats import Stats
from florence2.errors import OptionError, UserError
from florence2.files import print_json
from florence2.log import count_noun, log_lines, logger
from florence2.model.tasks import Task, find_task
from florence2.pipeline.class_splitter import ClassSplitter
from florence2.pipeline.task_pipeline import TaskPipeline
from florence2.recipes.create_engine import create_engine, parse_devices, serve_as_worker
from florence2.recipes.predict_spec import PredictSpec
from florence2.recipes.shards.predict_shards import is_sharded, run_predict_shards
from florence2.results.affixes import Affixes
from florence2.results.annotated_images import AnnotatedImageWriter
from florence2.results.dataset_exports import DatasetExport
from florence2.results.journal import Journal
from florence2.results.progress import PredictProgressBar, RunSummary, time_breakdown
from florence2.results.sidecar import SidecarWriter
from florence2.system import tune_allocator

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no further file can be written either


def main(settings: PredictSettings, *, as_json: bool = False) -> int:
    """Run `florence2 predict`; return 0 if all images were predicted, and 1 if some failed."""
    if as_json and settings.output.output_path == "-":
        raise OptionError("`--output_path -` prints predictions, and `--json` a summary of a run", "remove one of them")
    tune_allocator()
    summary = run_predict(settings)
    output_path = settings.output.output_path
    log_lines([*summary.lines(), *([f"the predictions are in {output_path}"] if output_path != "-" else [])])
    if as_json:
        print_json({"output_path": output_path, **summary.to_json()})
    return summary.exit_code


@respects_offline
def run_predict(settings: PredictSettings) -> RunSummary:
    """Run tasks on images and write the predictions down.

    Of a launcher's processes, the main one reads and writes; the others predict for it and return an empty summary.
    """
    rank = launcher_rank()
    if rank is not None and not is_main_process():
        serve_as_worker(rank, parse_devices(settings.compute, settings.speed.devices)[0])
        return RunSummary()
    spec = PredictSpec.resolve(settings)
    if not spec.input.input_path:
        raise OptionError("`--input_path` is empty", "pass images: a file, a folder, a pattern or an address")
    for name in (spec.input.input_path, spec.output.output_path):
        check_slashes(name)
    if settings.cluster.cluster is not None:
        from florence2.recipes.cluster.predict_cluster import run_predict_cluster

        return run_predict_cluster(spec, settings.cluster.cluster, settings.cluster.max_in_flight)
    if settings.cluster.max_in_flight is not None:
        raise OptionError("`--max_in_flight` is for a cluster", "pass `--cluster`, or remove it")
    return run_predict_shards(spec) if is_sharded(spec) else _predict_images(spec)


def _predict_images(spec: PredictSpec) -> RunSummary:
    """Predict a list of images on this machine into one journal."""
    output = spec.output
    if (
        Path(output.output_path).is_file()
        and Path(output.output_path).resolve() == Path(spec.input.input_path).resolve()
    ):
        raise OptionError(f"{output.output_path} is both input and output", "pass another `--output_path`")
    pipeline, images = spec.pipeline.apply_to(partial(_find_images, spec))
    root = images.root or Path()
    tasks = _tasks(pipeline, images)
    _report_row_tasks(spec, images)
    spec.check_min_score(tasks)
    exports = [DatasetExport.parse(each, output.output_path, tasks) for each in output.export]
    affixes = Affixes(output.prefix, output.suffix)
    if output.sidecar:
        _check_folder_images(images)
    sidecars = _sidecar_writer(spec, pipeline, root)
    if sidecars:
        sidecars.check_samples(images.samples)
    writers = [each for each in (sidecars, _annotated_image_writer(spec, pipeline, images)) if each]
    image_dir = relative_image_dir(Path(output.output_path), root)
    with Journal(
        output.output_path,
        run_id=spec.run_id,
        image_dir=image_dir,
        affixes=affixes,
        overwrite=output.overwrite_output,
    ) as journal:
        todo = _find_todo(pipeline, images.samples, journal, sidecars)
        for export in exports if todo.number else ():
            export.check_samples(images.samples)
        with PredictProgressBar(None if pipeline.has_follow_ups else len(images.samples), todo.num_resumed) as progress:
            for prediction, stats in _predictions(spec, pipeline, todo, progress):
                prediction = _write(writers, affixes, prediction)
                journal.write(prediction)
                progress.update(prediction, stats.slots_in_use, stats.slots, is_compiling=bool(stats.num_compiling))
            summary = progress.summary()
    for export in exports:
        if not export.is_done:
            for line in export.write(journal.rows(), images.samples, root):
                logger.info(line)
    return replace(
        summary,
        ignored_files=images.ignored_files_note(),
        failed_shards=tuple(images.failed_shards),
        failed_folders=tuple(images.failed_folders),
    )


@dataclass(frozen=True)
class _Todo:
    """The samples to predict, made as they are read, and their number; `num_resumed` have a prediction already."""

    samples: Iterable[Sample]
    number: int
    num_resumed: int


def _find_todo(
    pipeline: TaskPipeline, samples: Sequence[Sample], journal: Journal, sidecars: SidecarWriter | None
) -> _Todo:
    """Find the samples without a line and, where existing caption files are skipped, without one of those."""
    mask = journal.missing_mask(samples)
    if sidecars:
        sidecars.mask_existing(samples, mask, journal.lacks_line)
    number = sum(mask)
    if pipeline.has_follow_ups:
        missing = list(journal.missing(samples))  # with the follow-ups of those that have a line
        return _Todo(missing, len(missing), len(samples) - number)
    return _Todo(select_samples(samples, mask), number, len(samples) - number)


def _write(
    writers: Sequence[SidecarWriter | AnnotatedImageWriter], affixes: Affixes, prediction: Prediction
) -> Prediction:
    """Write the files of a prediction; a file that cannot be written is an error of this prediction alone."""
    try:
        for writer in writers:
            writer.write(affixes.add(prediction))
    except UserError as error:
        return replace(prediction, error=error.what)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        return replace(prediction, error=f"{error.filename or 'a file'} cannot be written: {error.strerror}")
    return prediction


def _predictions(
    spec: PredictSpec, pipeline: TaskPipeline, todo: _Todo, progress: PredictProgressBar
) -> Iterator[tuple[Prediction, Stats]]:
    """Yield predictions as they finish, with the engine's statistics; without samples no model is loaded."""
    if not todo.number and spec.engine.rank is None:
        return
    classes = ClassSplitter(pipeline)
    requests, number = todo.samples, todo.number
    if classes.has_queries:
        requests = list(classes.split(todo.samples))
        number = len(requests)
    start = time.monotonic()
    with create_engine(spec.engine, number) as engine:
        load_time = {"load": time.monotonic() - start}
        progress.show_stage("waiting for the first predictions")
        for prediction in classes.merge(engine.run(requests)):
            yield prediction, engine.stats
        logger.info(f"time: {time_breakdown(load_time | engine.stats.seconds)}")


def _find_images(spec: PredictSpec, task: str, task_input: str) -> ResolvedDataset:
    return resolve_images(spec.input.input_path, task=task, input=task_input, recursive=spec.input.recursive)


def _tasks(pipeline: TaskPipeline, images: ResolvedDataset) -> list[Task]:
    """List the tasks of the pipeline, and those that the rows of a table name."""
    if isinstance(images.samples, ListedSamples):
        return pipeline.tasks
    named = {sample.task for sample in images.samples} - {task.token for task in pipeline.tasks}
    return pipeline.tasks + [find_task(name) for name in sorted(named)]


def _report_row_tasks(spec: PredictSpec, images: ResolvedDataset) -> None:
    """Warn of rows of a table that name a task, which takes the place of `--task`."""
    if not spec.input.task or isinstance(images.samples, ListedSamples):
        return
    tokens = {step.task.token for step in spec.pipeline.steps}
    others = [sample for sample in images.samples if sample.task not in tokens]
    if others:
        number, flag = count_noun(len(others), "row"), f"`--task {' '.join(spec.input.task)}`"
        first = f"the first is `{find_task(others[0].task).name}` for {others[0].name}"
        logger.warning(f"a task of the table itself takes the place of {flag} in {number}; {first}")


def _sidecar_writer(spec: PredictSpec, pipeline: TaskPipeline, root: Path) -> SidecarWriter | None:
    output = spec.output
    if output.sidecar and pipeline.is_multi_task:
        raise OptionError("`--sidecar` holds one prediction per image", "pass one task, or remove `--sidecar`")
    return SidecarWriter(root, output.sidecar, output.if_exists) if output.sidecar else None


def _check_folder_images(images: ResolvedDataset) -> None:
    """Refuse to write beside images that are no files of a folder: in tars, tables and datasets, and at addresses."""
    if isinstance(images.samples, ListedSamples):
        return
    if first := next((sample for sample in images.samples if not isinstance(sample.image, Path)), None):
        raise OptionError(
            f"`--sidecar` writes a file beside each image, and {first.id} is no file in a folder",
            "remove `--sidecar`, and run `florence2 data convert OUTPUT FOLDER --to folder` afterwards",
        )


def _annotated_image_writer(
    spec: PredictSpec, pipeline: TaskPipeline, images: ResolvedDataset
) -> AnnotatedImageWriter | None:
    folder = spec.output.save_images
    return AnnotatedImageWriter(folder, images.samples, is_multi_task=pipeline.is_multi_task) if folder else None
