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
from florence2.data.resolve import resolve_pictures
from florence2.data.sample import Found, Prediction, Sample, folder_between
from florence2.engine.engine_config import GenerationSettings
from florence2.engine.workers.launcher import launched
from florence2.errors import UserError
from florence2.model.storage.checkpoint_files import find_folder
from florence2.model.storage.run_metadata import read_record
from florence2.model.tasks import Task, find_task
from florence2.pipeline.class_splitter import OneByOne
from florence2.pipeline.task_pipeline import Plan
from florence2.recipes.create_engine import engine_for, follow
from florence2.results.annotated_images import Drawings
from florence2.results.dataset_exports import Export
from florence2.results.journal import Journal, dressed, run_name, stamp, undressed
from florence2.results.progress import Meter, Tally, say, shares
from florence2.results.sidecar import SidecarWriter
from florence2.system import leads, tune_allocator

DEFAULT_TASK = "caption"


def main(settings: PredictSettings) -> int:
    """Run `florence2 predict`; return 0 where all pictures were answered and 1 where some were not."""
    tune_allocator()
    tally = predict(settings)
    if leads():
        say(tally.summary())
    return tally.exit_code


def predict(settings: PredictSettings | None = None, **values: Any) -> Tally:
    """Answer a task about every picture and write the answers down.

    Takes settings, or the flags of `florence2 predict` as keywords: `predict(model_path="demo", input_path="photos")`.
    """
    settings = settings or by_name.build(PredictSettings, values)
    if not leads():
        follow(settings)
        return Tally()
    output = settings.output
    generation = GenerationSettings.of(settings.generation)
    folder = find_folder(settings.model.model_path, settings.model.revision, settings.model.offline)
    plan, found = _plan(settings, folder).about(partial(_pictures, settings))
    root = found.root or Path()
    exports = [Export.of(each, output.output_path, _tasks(plan, found)) for each in output.export]
    sidecars = _sidecars(settings, plan, root)
    journal = Journal(
        output.output_path,
        run=_run(settings, generation, folder),
        folder=folder_between(Path(output.output_path), root),
        fresh=output.existing == "overwrite",
    )
    with journal, Meter(tally := Tally(total=None if plan.leads_on else len(found.samples))) as meter:
        samples = sidecars.wanted(found.samples) if sidecars else found.samples
        wanted = list(journal.missing(samples, lambda told: undressed(told, output.prefix, output.suffix)))
        tally.resumed = len({sample.key for sample in found.samples} - {sample.key for sample in wanted})
        for export in exports if wanted else ():
            export.refuse(found.samples)
        drawings = Drawings(output.draw, found.samples, several=plan.several) if output.draw else None
        for prediction in _answers(settings, generation, plan, wanted, tally):
            caption = dressed(prediction, output.prefix, output.suffix)
            for beside in (sidecars, drawings):
                if beside:
                    beside.write(caption)
            journal.write(caption)
            meter.count(caption)
    for export in exports:
        if not export.is_done:
            for line in export.write(journal.told(), found.samples, root):
                say(line)
    return tally


def _answers(
    settings: PredictSettings, generation: GenerationSettings, plan: Plan, wanted: list[Sample], tally: Tally
) -> Iterator[Prediction]:
    """Answer the samples as they finish, and say where the time went; without samples no model is loaded."""
    if wanted or launched():
        classes = OneByOne(plan)
        asked = list(classes.part(wanted))
        start = time.monotonic()
        with engine_for(settings, generation, len(asked)) as engine:
            loading = {"load": time.monotonic() - start}
            for prediction in classes.join(engine.run(asked)):
                tally.slots, tally.slots_in_use = engine.stats.slots, engine.stats.slots_in_use
                yield prediction
            say(f"time: {shares(loading | engine.stats.seconds)}")


def _plan(settings: PredictSettings, folder: Path) -> Plan:
    """Choose what is asked: what the user said, else what the model was fine-tuned with, else a caption."""
    record = read_record(folder)
    trained = record.task if record else DEFAULT_TASK
    return Plan.of(settings.pictures.task or (trained,), settings.pictures.input)


def _pictures(settings: PredictSettings, task: str, words: str) -> Found:
    pictures = settings.pictures
    return resolve_pictures(pictures.input_path, task=task, input=words, recursive=pictures.recursive)


def _tasks(plan: Plan, found: Found) -> list[Task]:
    """List what is asked, by the command line or by the rows of a table."""
    own = {sample.task for sample in found.samples} - {task.token for task in plan.tasks}
    return plan.tasks + [find_task(name) for name in sorted(own)]


def _sidecars(settings: PredictSettings, plan: Plan, root: Path) -> SidecarWriter | None:
    output = settings.output
    if output.sidecar and plan.several:
        raise UserError("`--sidecar` holds one answer, and several are asked for", "ask one task, or leave it out")
    return SidecarWriter(root, output.sidecar, output.existing) if output.sidecar else None


def _run(settings: PredictSettings, generation: GenerationSettings, folder: Path) -> str:
    """Name the run by what shapes an answer, and not by what only makes it faster."""
    output, flags = settings.output, by_name.flat(settings.generation)
    asked = {name: value for name, value in by_name.flat(generation).items() if name in flags or _is_set(name, value)}
    del asked["generate"]
    return run_name(str(folder), stamp(folder), asked, settings.speed.exact_pixels, output.prefix, output.suffix)


def _is_set(name: str, value: Any) -> bool:
    return bool(value != getattr(GenerationSettings, name))
