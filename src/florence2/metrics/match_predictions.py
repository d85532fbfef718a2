"""Matching of predictions and references: each reference example with the prediction for it, if there is one.

A prediction and a reference match if image, task and input are the same. Images are the same if their paths are; else
their names relative to their sources are compared.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from florence2.data.sample import Prediction, ResolvedDataset, Sample, SampleKey
from florence2.data.tables import read_rows
from florence2.errors import UserError
from florence2.metrics.geometry.matching import Instances
from florence2.model.locations import clean_text, decode
from florence2.model.tasks import OutputType, Task, find_task, split_prompt

DEFAULT_TASK = find_task("caption").token
_PREDICTIONS_HINT = "pass the JSONL file that `florence2 predict` wrote"


@dataclass(frozen=True)
class PredictionRow:
    """A prediction and the path of its image."""

    prediction: Prediction
    path: Path

    @property
    def task(self) -> Task:
        """The task of the prediction."""
        return split_prompt(self.prediction.task)[0]


def read_predictions(path: str, task: str | None = None) -> list[PredictionRow]:
    """Read a JSONL file of predictions; `task` is the task of rows that name none."""
    found: list[PredictionRow] = []
    for where, row in read_rows(_jsonl_path(path)):
        if not isinstance(row.get("file_name"), str):
            raise UserError(f"{where} is not a prediction: it has no `file_name`", _PREDICTIONS_HINT)
        try:
            prediction = Prediction.from_json({**row, "task": row.get("task") or task or DEFAULT_TASK})
        except UserError as error:
            raise UserError(f"{where} has an `answer` that cannot be read: {error.what}", error.hint) from None
        image_dir = Path(path).parent / str(row.get("image_dir") or ".")
        found.append(PredictionRow(prediction, image_dir / prediction.file_name))
    if not found:
        raise UserError(f"{path} holds no predictions", _PREDICTIONS_HINT)
    return found


def _jsonl_path(path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file", _PREDICTIONS_HINT)
    if Path(path).suffix.lower() not in {".jsonl", ".ndjson"}:
        raise UserError(f"{path} does not end in .jsonl", _PREDICTIONS_HINT)
    return Path(path)


def most_common_task(predictions: Sequence[PredictionRow]) -> str:
    """Return the task of most predictions, which is the default task of references that name none."""
    return Counter(row.prediction.task for row in predictions).most_common(1)[0][0]


@dataclass(frozen=True, eq=False)
class EvalExample:
    """One sample with all its references, as text in the model's own format, and the prediction if there is one."""

    sample: Sample
    task: Task
    targets: tuple[str, ...]
    prediction: Prediction | None

    @property
    def text(self) -> str:
        """The predicted text; "" without a prediction."""
        return self.prediction.text if self.prediction and self.prediction.error is None else ""

    @property
    def reference(self) -> Any:
        """The first reference: text, or geometry in pixels."""
        return self._read(self.targets[0])

    @property
    def answer(self) -> Any:
        """The predicted answer: text, or geometry in pixels."""
        answer = self.prediction.answer if self.prediction and self.prediction.error is None else None
        return self._read(self.text) if answer is None else answer.to_dict()

    def _read(self, text: str) -> Any:
        if self.task.output_type is OutputType.TEXT:
            return clean_text(text)
        return decode(self.task, text, self.sample.size()).to_dict()

    def instances(self) -> tuple[Instances, Instances]:
        """Return the predicted and the reference objects."""
        score = self.prediction.score if self.prediction else None
        predictions = _instances(self.answer, 1.0 if score is None else score, self.sample.id)
        return predictions, _instances(self.reference, 1.0, self.sample.id)


_LABEL_KEYS = {"bboxes": "bboxes_labels", "quad_boxes": "", "polygons": "polygons_labels"}


def _instances(answer: dict[str, Any], default_score: float, name: str) -> Instances:
    """Flatten an answer of any kind; where there are boxes and polygons, polygons become their bounding boxes."""
    geometries: list[Any] = []
    labels: list[str] = []
    scores: list[float] = []
    for kind, label_key in _LABEL_KEYS.items():
        if not (geometry := answer.get(kind)):
            continue
        kind_labels = answer.get(label_key, answer.get("labels")) or [""] * len(geometry)
        kind_scores = answer.get(f"{kind}_scores", answer.get("scores")) or [default_score] * len(geometry)
        if not len(geometry) == len(kind_labels) == len(kind_scores):
            raise UserError(f"the answer about {name} has {len(geometry)} `{kind}` and {len(kind_labels)} labels")
        if not all(_is_valid(kind, each) for each in geometry) or not _are_numbers(kind_scores):
            raise UserError(f"the answer about {name} has invalid `{kind}`", "pass pixels as numbers")
        geometries += [_bounds(each) for each in geometry] if kind == "polygons" and "bboxes" in answer else geometry
        labels += kind_labels
        scores += kind_scores
    return Instances(geometries, labels, scores)


def _is_valid(kind: str, geometry: Any) -> bool:
    if kind == "polygons":
        return isinstance(geometry, list) and all(map(_are_numbers, geometry)) and any(len(p) > 1 for p in geometry)
    return _are_numbers(geometry) and len(geometry) == (4 if kind == "bboxes" else 8)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _bounds(polygons: Sequence[Sequence[float]]) -> list[float]:
    xs, ys = [x for polygon in polygons for x in polygon[0::2]], [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs), max(ys)]


@dataclass(frozen=True, eq=False)
class MatchResult:
    """All reference examples, and the image names of what did not match.

    `unmatched` are predictions without a reference, `missing` examples without a prediction, `failed` examples whose
    prediction is an error, `duplicates` predictions that a later one replaced, `unlabeled` images without a reference.
    """

    examples: list[EvalExample]
    unmatched: list[str]
    missing: list[str]
    failed: list[str]
    duplicates: list[str]
    unlabeled: list[str]


def match_predictions(predictions: Sequence[PredictionRow], references: ResolvedDataset) -> MatchResult:
    """Match predictions with references; the examples keep the order of the references."""
    samples: dict[SampleKey, list[Sample]] = {}
    for sample in references.samples:
        samples.setdefault(_key(sample.id, sample.task, sample.input), []).append(sample)
    by_path = {_key(_real_path(s.image), s.task, s.input): key for key, (s, *_) in samples.items()}
    matched: dict[SampleKey, Prediction] = {}
    unmatched: list[str] = []
    duplicates: list[str] = []
    for row in predictions:
        prediction = row.prediction
        by_name = _key(prediction.file_name, prediction.task, prediction.input)
        key = by_path.get(_key(_real_path(row.path), prediction.task, prediction.input), by_name)
        if key not in samples:
            unmatched.append(prediction.file_name)
        elif key in matched:
            duplicates.append(prediction.file_name)
        if key in samples:
            matched[key] = prediction
    if not matched:
        raise _nothing_matches(predictions, references)
    examples = [
        EvalExample(group[0], find_task(key[1]), _targets(group), matched.get(key)) for key, group in samples.items()
    ]
    missing = [example.sample.id for example in examples if example.prediction is None]
    failed = [each.sample.id for each in examples if each.prediction and each.prediction.error is not None]
    unlabeled = [skipped.id for skipped in references.skipped]
    return MatchResult(examples, unmatched, missing, failed, duplicates, unlabeled)


def remove_missing(results: Sequence[MatchResult]) -> list[MatchResult]:
    """Remove the examples without a prediction in any of the results, which have the same references."""
    columns = list(zip(*(result.examples for result in results), strict=True))
    complete = [column for column in columns if all(example.prediction is not None for example in column)]
    if not complete:
        raise UserError("no example has a prediction on both sides", "compare predictions for the same images")
    return [replace(result, examples=[column[i] for column in complete]) for i, result in enumerate(results)]


def _key(name: str, task: str, task_input: str) -> SampleKey:
    parsed_task, prompt_input = split_prompt(task)
    return SampleKey(name, parsed_task.token, (task_input or prompt_input).strip())


def _real_path(image: Any) -> str:
    return os.path.realpath(image) if isinstance(image, Path) else ""


def _targets(group: Iterable[Sample]) -> tuple[str, ...]:
    return tuple(sample.target or "" for sample in group)


def _nothing_matches(predictions: Sequence[PredictionRow], references: ResolvedDataset) -> UserError:
    predicted_tasks = sorted({row.task.name for row in predictions})
    reference_tasks = sorted({split_prompt(sample.task)[0].name for sample in references.samples})
    if not set(predicted_tasks) & set(reference_tasks):
        return UserError(
            f"the predictions are for task `{predicted_tasks[0]}` and {references.source} for `{reference_tasks[0]}`",
            "pass `--task` if the references name no task",
        )
    first, other = predictions[0].prediction.file_name, references.samples[0].id
    return UserError(
        f"no prediction is for an image of {references.source}: the first is for {first}, not {other}",
        "pass the dataset of the images that were predicted",
    )
