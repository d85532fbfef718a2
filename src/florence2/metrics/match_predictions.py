"""Matching of predictions and references: each reference example with the prediction for it, if there is one.

A prediction and a reference match if image, task and input are the same. Images are the same if their paths are; else
their names relative to their sources are compared.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from florence2.data.inspection.target_doubts import reject_fractions
from florence2.data.sample import Prediction, ResolvedDataset, Sample, SampleKey
from florence2.data.stores.store_path import AnyPath
from florence2.data.streams.outputs.job_outputs import find_job_outputs
from florence2.data.tables import read_rows
from florence2.errors import DatasetError, UserError
from florence2.metrics.geometry.matching import ItemsPair
from florence2.model.answer import Answer, AnswerItem
from florence2.model.locations import clean_text, decode
from florence2.model.tasks import NUM_BINS, OutputType, Task, find_task, split_prompt

DEFAULT_TASK = find_task("caption").token
_PREDICTIONS_HINT = "pass the file or folder that `florence2 predict` wrote"


@dataclass(frozen=True)
class PredictionRow:
    """A prediction and the path of its image."""

    prediction: Prediction
    path: Path

    @property
    def task(self) -> Task:
        """The task of the prediction."""
        return split_prompt(self.prediction.task)[0]


_FEW = 3  # answers that may all be in the first two pixels


def read_predictions(path: str, task: str | None = None) -> list[PredictionRow]:
    """Read predictions from a JSONL file or what `predict` wrote; `task` is the task of rows that name none.

    The latter are a Parquet file, a table in a store, and the outputs of a job in shards.
    """
    found: list[PredictionRow] = []
    tables = [(table, row) for table in _tables(path) for row in read_rows(table)]
    for table, (where, row) in tables:
        if not isinstance(row.get("file_name"), str):
            raise DatasetError(f"{where} is not a prediction: it has no `file_name`", _PREDICTIONS_HINT)
        try:
            values = {key: value for key, value in row.items() if value is not None or key == "score"}
            prediction = Prediction.from_json({**values, "task": row.get("task") or task or DEFAULT_TASK})
        except UserError as error:
            raise DatasetError(f"{where} has an invalid `answer`: {error.what}", error.hint) from None
        image_dir = Path(str(table.parent)) / str(row.get("image_dir") or ".")
        found.append(PredictionRow(prediction, image_dir / prediction.file_name))
    if not found:
        raise DatasetError(f"{path} holds no predictions", _PREDICTIONS_HINT)
    answers = [row.prediction.answer for row in found if row.prediction.answer]
    if len(answers) >= _FEW:  # one model may answer a single box in the corner
        rings = (ring for answer in answers for item in answer for ring in item.rings)
        reject_fractions(rings, (NUM_BINS, NUM_BINS), path)
    return found


def _tables(path: str) -> tuple[AnyPath, ...]:
    if outputs := find_job_outputs(path):
        return outputs.paths
    if not Path(path).is_file():
        raise DatasetError(f"{path} is not a file", _PREDICTIONS_HINT)
    if Path(path).suffix.lower() not in {".jsonl", ".ndjson", ".parquet"}:
        raise DatasetError(f"{path} does not end in .jsonl or .parquet", _PREDICTIONS_HINT)
    return (Path(path),)


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
    def reference(self) -> Answer | str:
        """The first reference: text, or positions in pixels, exactly as the dataset has them."""
        return self._decode(self.targets[0]) if self.sample.reference is None else self.sample.reference

    @property
    def answer(self) -> Answer | str:
        """The predicted answer: text, or positions in pixels."""
        answer = self.prediction.answer if self.prediction and self.prediction.error is None else None
        return self._decode(self.text) if answer is None else answer

    def items(self) -> ItemsPair:
        """Return the predicted and the reference objects; objects without a score have that of the prediction."""
        return _items(self.answer, self.prediction.score if self.prediction else None), _items(self.reference)

    def _decode(self, text: str) -> Answer | str:
        if self.task.output_type is OutputType.TEXT:
            return clean_text(text)
        return decode(self.task, text, self.sample.size())


def _items(answer: Answer | str, default_score: float | None = None) -> list[AnswerItem]:
    """Return the objects of an answer; where it has boxes or polygons, polygons become their bounding boxes."""
    if isinstance(answer, str):
        return []
    items = [item if item.score is not None else replace(item, score=default_score) for item in answer]
    if answer.output_type is not OutputType.BOXES_OR_POLYGONS:
        return items
    boxes = (AnswerItem.box(item.bounding_box, item.label, item.score) for item in items)
    return [
        replace(box, is_crowd=item.is_crowd, annotated_area=item.annotated_area)
        for box, item in zip(boxes, items, strict=True)
    ]


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
        raise DatasetError("no example has a prediction on both sides", "compare predictions for the same images")
    return [replace(result, examples=[column[i] for column in complete]) for i, result in enumerate(results)]


def _key(name: str, task: str, task_input: str) -> SampleKey:
    parsed_task, prompt_input = split_prompt(task)
    return SampleKey(name, parsed_task.token, (task_input or prompt_input).strip())


def _real_path(image: Any) -> str:
    return os.path.realpath(image) if isinstance(image, Path) else ""


def _targets(group: Iterable[Sample]) -> tuple[str, ...]:
    return tuple(sample.target or "" for sample in group)


def _nothing_matches(predictions: Sequence[PredictionRow], references: ResolvedDataset) -> DatasetError:
    predicted_tasks = sorted({row.task.name for row in predictions})
    reference_tasks = sorted({split_prompt(sample.task)[0].name for sample in references.samples})
    if not set(predicted_tasks) & set(reference_tasks):
        return DatasetError(
            f"the predictions are for task `{predicted_tasks[0]}` and {references.source} for `{reference_tasks[0]}`",
            "pass `--task` if the references name no task",
        )
    first, other = predictions[0].prediction.file_name, references.samples[0].id
    return DatasetError(
        f"no prediction is for an image of {references.source}: the first is for {first}, not {other}",
        "pass the dataset of the images that were predicted",
    )
