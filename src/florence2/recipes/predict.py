"""Pictures in, `captions.jsonl` out: the model answers one question about each picture.

Read it top to bottom. Opening pictures is `data`, answering is `engine`, keeping is `results`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2 import settings as by_name
from florence2.config import PredictSettings
from florence2.data.resolve import resolve_pictures
from florence2.data.sample import Prediction, Sample, folder_between
from florence2.engine.engine import Engine
from florence2.engine.options import EngineSettings, GenerationSettings
from florence2.engine.reference import Reference
from florence2.errors import UserError
from florence2.machine import tune_allocator
from florence2.model.checkpoint import find_folder
from florence2.model.load import load
from florence2.model.tasks import Takes, split_prompt
from florence2.results.drawings import Drawings
from florence2.results.journal import Journal, dressed, run_name, stamp
from florence2.results.progress import Meter, Tally, say, shares
from florence2.results.sidecar import SidecarWriter
from florence2.training.record import read_record

DEFAULT_TASK = "caption"


def main(settings: PredictSettings) -> int:
    """Run `florence2 predict`; return 0 where all pictures were answered and 1 where some were not."""
    tune_allocator()
    tally = predict(settings)
    say(tally.summary())
    return tally.exit_code


def predict(settings: PredictSettings | None = None, **values: Any) -> Tally:
    """Answer a task about every picture and write the answers down.

    Takes settings, or the flags of `florence2 predict` as keywords: `predict(model_path="demo", input_path="photos")`.
    """
    settings = settings or by_name.build(PredictSettings, values)
    output, pictures = settings.output, settings.pictures
    folder = find_folder(settings.model.model_path, settings.model.revision, settings.model.offline)
    task, words = _question(settings, folder)
    found = resolve_pictures(pictures.input_path, task=task, input=words, recursive=pictures.recursive)
    root = found.root or Path()
    sidecars = SidecarWriter(root, output.sidecar, output.existing) if output.sidecar else None
    journal = Journal(
        output.output_path,
        run=_run(settings, folder),
        folder=folder_between(Path(output.output_path), root),
        fresh=output.existing == "overwrite",
    )
    tally = Tally(total=len(found.samples))
    with journal, Meter(tally) as meter:
        wanted = list(journal.missing(sidecars.wanted(found.samples) if sidecars else found.samples))
        tally.resumed = len(found.samples) - len(wanted)
        drawings = Drawings(output.draw, wanted) if output.draw else None
        for prediction in _answers(settings, wanted):
            caption = dressed(prediction, output.prefix, output.suffix)
            for beside in (sidecars, drawings):
                if beside:
                    beside.write(caption)
            journal.write(caption)
            meter.count(caption)
    return tally


def _answers(settings: PredictSettings, wanted: list[Sample]) -> Iterator[Prediction]:
    """Answer the samples as they finish, and say where the time went; without samples no model is loaded."""
    if wanted:
        with _engine(settings, len(wanted)) as engine:
            yield from engine.run(wanted)
            say(f"time: {shares(engine.stats.seconds)}")


def _question(settings: PredictSettings, folder: Path) -> tuple[str, str]:
    """Choose what is asked: what the user said, else what the model was fine-tuned with, else a caption."""
    record = read_record(folder)
    task, words = split_prompt(settings.pictures.task or (record.task if record else DEFAULT_TASK))
    words = settings.pictures.input or words
    if task.takes is not Takes.NOTHING and not words:
        raise UserError(f"the task {task.name} needs {task.takes}", f"pass `--input` with the {task.takes}")
    return task.token, words


def _run(settings: PredictSettings, folder: Path) -> str:
    """Name the run by what shapes an answer, and not by what only makes it faster."""
    output = settings.output
    generation = by_name.flat(settings.generation)
    return run_name(str(folder), stamp(folder), generation, settings.speed.exact_pixels, output.prefix, output.suffix)


def _engine(settings: PredictSettings, expected: int) -> Engine | Reference:
    model, processor = load(
        settings.model.model_path,
        dtype=settings.model.dtype,
        device=settings.model.device,
        revision=settings.model.revision,
        offline=settings.model.offline,
    )
    engine = Engine if settings.speed.engine == "slots" else Reference
    return engine(
        model,
        processor,
        EngineSettings(
            generation=GenerationSettings(**by_name.flat(settings.generation)),
            batch_size=settings.speed.batch_size,
            num_workers=settings.speed.num_workers,
            exact_pixels=settings.speed.exact_pixels,
            compile=settings.speed.compile,
            expected=expected,
        ),
    )
