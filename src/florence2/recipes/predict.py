"""Pictures in, `captions.jsonl` out: the model answers what it is asked about each picture.

Read it top to bottom. What is asked is `asking`, opening pictures `data`, answering `engine`, keeping `results`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from florence2 import settings_io as by_name
from florence2.config import PredictSettings
from florence2.data.resolve import resolve_images
from florence2.data.sample import Prediction, ResolvedDataset, Sample, relative_image_dir
from florence2.distributed import is_main_process, launcher_rank
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import UserError
from florence2.log import logger
from florence2.model.storage.checkpoint_files import find_folder
from florence2.model.storage.run_metadata import read_run_metadata
from florence2.model.tasks import Task, find_task
from florence2.pipeline.class_splitter import ClassSplitter
from florence2.pipeline.task_pipeline import TaskPipeline
from florence2.recipes.create_engine import create_engine, parse_generation_config, serve_as_worker
from florence2.results.annotated_images import AnnotatedImageWriter
from florence2.results.dataset_exports import DatasetExport
from florence2.results.journal import Journal, add_affixes, run_id, strip_affixes, weights_fingerprint
from florence2.results.progress import PredictProgressBar, RunSummary, time_breakdown
from florence2.results.sidecar import SidecarWriter
from florence2.system import tune_allocator

DEFAULT_TASK = "caption"


def main(settings: PredictSettings) -> int:
    """Run `florence2 predict`; return 0 where all pictures were answered and 1 where some were not."""
    tune_allocator()
    tally = predict(settings)
    logger.info(tally.summary())
    return tally.exit_code


def predict(settings: PredictSettings | None = None, **values: Any) -> RunSummary:
    """Answer a task about every picture and write the answers down.

    Takes settings, or the flags of `florence2 predict` as keywords: `predict(model_path="demo", input_path="photos")`.
    """
    settings = settings or by_name.settings_from_dict(PredictSettings, values)
    if not is_main_process():
        serve_as_worker(settings)
        return RunSummary()
    output = settings.output
    generation = parse_generation_config(settings.generation)
    folder = find_folder(settings.model.model_path, settings.model.revision, settings.model.offline)
    plan, found = _plan(settings, folder).apply_to(partial(_images, settings))
    root = found.root or Path()
    exports = [DatasetExport.parse(each, output.output_path, _tasks(plan, found)) for each in output.export]
    sidecars = _sidecars(settings, plan, root)
    journal = Journal(
        output.output_path,
        run=_run(settings, generation, folder),
        image_dir=relative_image_dir(Path(output.output_path), root),
        overwrite=output.if_exists == "overwrite",
    )
    with (
        journal,
        PredictProgressBar(tally := RunSummary(total=None if plan.has_follow_ups else len(found.samples))) as meter,
    ):
        samples = sidecars.without_sidecar(found.samples) if sidecars else found.samples
        wanted = list(journal.missing(samples, lambda told: strip_affixes(told, output.prefix, output.suffix)))
        tally.resumed = len({sample.key for sample in found.samples} - {sample.key for sample in wanted})
        for export in exports if wanted else ():
            export.check_samples(found.samples)
        drawings = (
            AnnotatedImageWriter(output.save_images, found.samples, several=plan.is_multi_task)
            if output.save_images
            else None
        )
        for prediction in _answers(settings, generation, plan, wanted, tally):
            caption = add_affixes(prediction, output.prefix, output.suffix)
            for beside in (sidecars, drawings):
                if beside:
                    beside.write(caption)
            journal.write(caption)
            meter.count(caption)
    for export in exports:
        if not export.is_done:
            for line in export.write(journal.rows(), found.samples, root):
                logger.info(line)
    return tally


def _answers(
    settings: PredictSettings, generation: GenerationConfig, plan: TaskPipeline, wanted: list[Sample], tally: RunSummary
) -> Iterator[Prediction]:
    """Answer the samples as they finish, and say where the time went; without samples no model is loaded."""
    if wanted or launcher_rank():
        classes = ClassSplitter(plan)
        asked = list(classes.split(wanted))
        start = time.monotonic()
        with create_engine(settings, generation, len(asked)) as engine:
            loading = {"load": time.monotonic() - start}
            for prediction in classes.merge(engine.run(asked)):
                tally.slots, tally.slots_in_use = engine.stats.slots, engine.stats.slots_in_use
                yield prediction
            logger.info(f"time: {time_breakdown(loading | engine.stats.seconds)}")


def _plan(settings: PredictSettings, folder: Path) -> TaskPipeline:
    """Choose what is asked: what the user said, else what the model was fine-tuned with, else a caption."""
    record = read_run_metadata(folder)
    trained = record.task if record else DEFAULT_TASK
    return TaskPipeline.parse(settings.input.task or (trained,), settings.input.task_input)


def _images(settings: PredictSettings, task: str, words: str) -> ResolvedDataset:
    images = settings.input
    return resolve_images(images.input_path, task=task, input=words, recursive=images.recursive)


def _tasks(plan: TaskPipeline, found: ResolvedDataset) -> list[Task]:
    """List what is asked, by the command line or by the rows of a table."""
    own = {sample.task for sample in found.samples} - {task.token for task in plan.tasks}
    return plan.tasks + [find_task(name) for name in sorted(own)]


def _sidecars(settings: PredictSettings, plan: TaskPipeline, root: Path) -> SidecarWriter | None:
    output = settings.output
    if output.sidecar and plan.is_multi_task:
        raise UserError("`--sidecar` holds one answer, and several are asked for", "ask one task, or leave it out")
    return SidecarWriter(root, output.sidecar, output.if_exists) if output.sidecar else None


def _run(settings: PredictSettings, generation: GenerationConfig, folder: Path) -> str:
    """Name the run by what shapes an answer, and not by what only makes it faster."""
    output, flags = settings.output, by_name.settings_to_dict(settings.generation)
    asked = {
        name: value
        for name, value in by_name.settings_to_dict(generation).items()
        if name in flags or _is_set(name, value)
    }
    return run_id(
        str(folder), weights_fingerprint(folder), asked, settings.speed.full_decode, output.prefix, output.suffix
    )


def _is_set(name: str, value: Any) -> bool:
    return bool(value != getattr(GenerationConfig, name))
