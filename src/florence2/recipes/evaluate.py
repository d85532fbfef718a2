"""Predictions and right answers in, scores out; no model is loaded unless one is to be asked first.

Read it top to bottom. Right answers come from `data`, scores from `results`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from florence2 import settings_io as by_name
from florence2.config import EvaluateSettings, InputSettings, OutputSettings, PredictSettings, WeightsSettings
from florence2.data.resolve import resolve_dataset
from florence2.data.sample import ResolvedDataset
from florence2.distributed import is_main_process
from florence2.errors import UserError
from florence2.log import logger, render_text
from florence2.metrics.by_task import ScoreDifference, TaskScores, compare, score_tasks
from florence2.metrics.match_predictions import (
    MatchResult,
    PredictionRow,
    match_predictions,
    most_common_task,
    read_predictions,
    remove_missing,
)
from florence2.metrics.report import match_notes, score_tables, scores_to_json
from florence2.results.html.html_report import html_report


def main(settings: EvaluateSettings) -> int:
    """Run `florence2 evaluate`."""
    scores = evaluate(settings)
    if settings.score.output_path == "-" and is_main_process():
        sys.stdout.write(json.dumps(scores, ensure_ascii=False, indent=2) + "\n")
    return 0


def evaluate(settings: EvaluateSettings | None = None, **values: Any) -> dict[str, Any]:
    """Score predictions, write what the settings ask for, and return the scores as they stand in the JSON.

    Takes settings, or the flags of `florence2 evaluate` as keywords: `evaluate(predictions="captions.jsonl",
    references="photos")`. Of a launcher's processes the first scores and
    writes; the others answer for it, and return nothing.
    """
    settings = settings or by_name.settings_from_dict(EvaluateSettings, values)
    files = _files(settings)
    if not is_main_process():
        return {}
    said = [read_predictions(file, settings.reference.task) for file in files]
    wanted = _wanted(settings, said[0])
    paired = [match_predictions(each, wanted) for each in said]
    if settings.score.missing_predictions == "skip":
        paired = remove_missing(paired)
    tasks = _graded(settings, paired)
    about = {"references": settings.reference.references, "predictions": files[0] if len(files) == 1 else files}
    scores = scores_to_json(tasks, paired, about, settings.score.num_worst)
    skipped = settings.score.missing_predictions == "skip"
    told = [
        f"{file}: {note}"
        for each, file in zip(paired, files, strict=True)
        for note in match_notes(each, skipped=skipped)
    ]
    _write(settings, tasks, told, scores)
    logger.info(render_text(*score_tables(tasks)))
    for note in told:
        logger.info(note)
    return scores


def _files(settings: EvaluateSettings) -> list[str]:
    """Name the files of predictions, asking the model first where there is one."""
    said = settings.prediction
    for path in (settings.score.output_path, settings.score.html or "-"):
        if Path(path).is_dir():
            raise UserError(f"{path} is a folder", "pass a file to `--output_path` and `--html`")
    if said.compare and (said.predictions or said.model_path):
        raise UserError("`--compare` names all predictions there are", "leave out `--predictions` and `--model_path`")
    if said.compare:
        if len(said.compare) != 2:
            raise UserError(
                f"`--compare` takes two files and got {len(said.compare)}", "pass `--compare A.jsonl B.jsonl`"
            )
        return list(said.compare)
    if said.model_path:
        return [_asked(settings, said.model_path)]
    if said.predictions is None:
        raise UserError("there is nothing to score", "pass `--predictions`, `--compare` or `--model_path`")
    return [said.predictions]


def _asked(settings: EvaluateSettings, model_path: str) -> str:
    """Let a model answer the references' questions."""
    from florence2.recipes.predict import predict  # loads torch

    said, wanted = settings.prediction, settings.reference
    written = said.predictions or "predictions.jsonl"
    predict(
        PredictSettings(
            model=WeightsSettings(model_path, said.revision, said.offline, said.device, said.dtype),
            input=InputSettings(
                wanted.references, task=(wanted.task,) if wanted.task else (), recursive=wanted.recursive
            ),
            output=OutputSettings(written),
            generation=settings.generation,
            speed=settings.speed,
        )
    )
    return written


def _wanted(settings: EvaluateSettings, said: list[PredictionRow]) -> ResolvedDataset:
    wanted = settings.reference
    return resolve_dataset(
        wanted.references,
        task=wanted.task or most_common_task(said),
        dataset_dir=wanted.dataset_dir,
        recursive=wanted.recursive,
        image_column=wanted.image_column,
        text_column=wanted.text_column,
        missing="skip",
        revision=settings.prediction.revision,
        offline=settings.prediction.offline,
    )


def _graded(settings: EvaluateSettings, paired: list[MatchResult]) -> list[TaskScores] | list[ScoreDifference]:
    how = settings.score
    graded = [
        score_tasks(
            each.examples, text_metrics=how.text_metrics, num_resamples=how.bootstrap_samples, meteor=how.meteor
        )
        for each in paired
    ]
    return graded[0] if len(graded) == 1 else compare(graded[0], graded[1], how.bootstrap_samples)


def _write(settings: EvaluateSettings, tasks: Any, told: list[str], scores: dict[str, Any]) -> None:
    how = settings.score
    if how.output_path != "-":
        _to_file(how.output_path, json.dumps(scores, ensure_ascii=False, indent=2) + "\n")
    if how.html:
        title = (
            " and ".join(settings.prediction.compare)
            or settings.prediction.predictions
            or str(settings.prediction.model_path)
        )
        _to_file(how.html, html_report(tasks, told, f"{title} against {settings.reference.references}", how.num_worst))


def _to_file(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
