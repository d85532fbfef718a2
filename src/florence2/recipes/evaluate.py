"""Evaluation: predictions and references in, scores out.

`data` reads references, `metrics` computes scores, `results` writes the HTML page. A model is loaded only where it
predicts first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from florence2.config import EvaluateSettings, InputSettings, OutputSettings, PredictSettings, WeightsSettings
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.sample import ResolvedDataset
from florence2.data.stores.offline import respects_offline
from florence2.distributed import is_main_process
from florence2.errors import OptionError
from florence2.files import to_json
from florence2.log import log_lines, render_lines
from florence2.metrics.by_task import ScoreDifference, TaskScores, compare, score_tasks
from florence2.metrics.match_predictions import (
    MatchResult,
    PredictionRow,
    match_predictions,
    most_common_task,
    read_predictions,
    remove_missing,
)
from florence2.metrics.report import match_notes, reference_notes, score_tables, scores_to_json
from florence2.results.html.html_report import html_report

DEFAULT_PREDICTIONS = "predictions.jsonl"


def main(settings: EvaluateSettings, *, as_json: bool = False) -> int:
    """Run `florence2 evaluate`; `as_json` prints the scores where they are written to a file, too."""
    scores = run_evaluate(settings)
    if (as_json or settings.score.output_path == "-") and is_main_process():
        sys.stdout.write(to_json(scores, indent=2, encoding=sys.stdout.encoding) + "\n")
    return 0


@respects_offline
def run_evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Score predictions, write the scores and the HTML page, and return the scores as the JSON file holds them.

    Of a launcher's processes, the main one scores and writes; the others predict for it and return nothing.
    """
    files = _prediction_files(settings)
    if not is_main_process():
        return {}
    predictions = [read_predictions(file, settings.reference.task) for file in files]
    references = _read_references(settings, predictions[0])
    matches = [match_predictions(rows, references) for rows in predictions]
    is_skipped = settings.score.missing_predictions == "skip"
    if is_skipped:
        matches = remove_missing(matches)
    tasks = _score(settings, matches)
    sources = {"references": settings.reference.references, "predictions": files[0] if len(files) == 1 else files}
    scores = scores_to_json(tasks, matches, sources, settings.score.num_worst)
    notes = [
        f"{file}: {note}"
        for match, file in zip(matches, files, strict=True)
        for note in match_notes(match, skipped=is_skipped)
    ]
    notes += [f"{settings.reference.references}: {note}" for note in reference_notes(references)]
    _write(settings, tasks, notes, scores)
    log_lines([*render_lines(*score_tables(tasks)), *notes])
    return scores


def _prediction_files(settings: EvaluateSettings) -> list[str]:
    """Name the files of predictions, after the model has predicted where there is one."""
    source = settings.prediction
    for path in (settings.score.output_path, settings.score.html or "-"):
        if Path(path).is_dir():
            raise OptionError(f"{path} is a folder", "pass a file to `--output_path` and `--html`")
    if settings.generation.min_score and not source.model_path:
        raise OptionError(
            "`--min_score` is a setting of prediction, and these predictions exist",
            "pass `--model_path`, or write them anew with `florence2 predict --min_score`",
        )
    if source.base_model and not source.model_path:
        raise OptionError("`--base_model` is for an adapter that predicts", "pass `--model_path`, or remove it")
    if source.compare and (source.predictions or source.model_path):
        raise OptionError("`--compare` names both files of predictions", "remove `--predictions` and `--model_path`")
    if source.compare:
        if len(source.compare) != 2:
            raise OptionError(
                f"`--compare` takes two files and got {len(source.compare)}", "pass `--compare A.jsonl B.jsonl`"
            )
        return list(source.compare)
    if source.model_path:
        return [_predict_references(settings, source.model_path)]
    if source.predictions is None:
        raise OptionError("there are no predictions to score", "pass `--predictions`, `--compare` or `--model_path`")
    return [source.predictions]


def _predict_references(settings: EvaluateSettings, model_path: str) -> str:
    """Predict the samples of the references, and return the file of predictions."""
    from florence2.recipes.predict import run_predict  # loads torch

    reference, path = settings.reference, settings.prediction.predictions or DEFAULT_PREDICTIONS
    task = (reference.task,) if reference.task else ()
    run_predict(
        PredictSettings(
            model=WeightsSettings(model_path, settings.prediction.base_model),
            input=InputSettings(reference.references, task=task, recursive=settings.source.recursive),
            output=OutputSettings(path),
            generation=settings.generation,
            hub=settings.hub,
            compute=settings.compute,
            speed=settings.speed,
        )
    )
    return path


def _read_references(settings: EvaluateSettings, predictions: list[PredictionRow]) -> ResolvedDataset:
    reference, source, hub = settings.reference, settings.source, settings.hub
    options = DatasetOptions(
        task=reference.task or most_common_task(predictions),
        dataset_dir=source.dataset_dir,
        recursive=source.recursive,
        image_column=source.image_column,
        text_column=source.text_column,
        on_missing="skip",
        revision=None if settings.prediction.model_path else hub.revision,  # else it is the model's
        offline=hub.offline,
        keep_answers=True,
    )
    return resolve_dataset(reference.references, options)


def _score(settings: EvaluateSettings, matches: list[MatchResult]) -> list[TaskScores] | list[ScoreDifference]:
    """Score one file of predictions, or the differences between two."""
    options = settings.score
    scores = [
        score_tasks(
            match.examples,
            text_metrics=options.text_metrics,
            num_resamples=options.bootstrap_samples,
            meteor=options.meteor,
        )
        for match in matches
    ]
    return scores[0] if len(scores) == 1 else compare(scores[0], scores[1], options.bootstrap_samples)


def _write(settings: EvaluateSettings, tasks: Any, notes: list[str], scores: dict[str, Any]) -> None:
    options, source = settings.score, settings.prediction
    if options.output_path != "-":
        _write_text(options.output_path, to_json(scores, indent=2) + "\n")
    if options.html:
        predictions = " and ".join(source.compare) or source.predictions or source.model_path
        title = f"{predictions} against {settings.reference.references}"
        _write_text(options.html, html_report(tasks, notes, title, options.num_worst))


def _write_text(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
