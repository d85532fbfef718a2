"""What is compared with what: each question that the references ask, beside the prediction that answers it.

Knows no scores. Prediction and reference belong together when they are about the same picture, and ask the same task
with the same input. Pictures are the same where their paths are, else where their names relative to their sources are.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from florence2.data.sample import Prediction, ResolvedDataset, Sample
from florence2.data.tables import read_rows
from florence2.errors import UserError
from florence2.metrics.geometry.matching import Instances
from florence2.model.locations import decode
from florence2.model.tasks import OutputType, Task, find_task, split_prompt

Key = tuple[str, str, str]

UNNAMED_TASK = find_task("caption").token


@dataclass(frozen=True)
class PredictionRow:
    """A prediction, and where its picture should lie."""

    prediction: Prediction
    path: Path

    @property
    def task(self) -> Task:
        """Give the task that was asked."""
        return split_prompt(self.prediction.task)[0]


def read_predictions(path: str, task: str | None = None) -> list[PredictionRow]:
    """Read a file of predictions; `task` is what rows answer that do not say."""
    found: list[PredictionRow] = []
    for where, row in read_rows(_table(path)):
        if not isinstance(row.get("file_name"), str):
            raise UserError(f"{where} is no prediction: it has no `file_name`", "pass what `florence2 predict` wrote")
        prediction = Prediction.from_json({**row, "task": row.get("task") or task or UNNAMED_TASK})
        folder = Path(path).parent / str(row.get("folder") or ".")
        found.append(PredictionRow(prediction, folder / prediction.file_name))
    if not found:
        raise UserError(f"{path} holds no predictions", "pass what `florence2 predict` wrote")
    return found


def _table(path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file", "pass the predictions that `florence2 predict` wrote")
    if Path(path).suffix.lower() not in {".jsonl", ".ndjson"}:
        raise UserError(f"{path} does not end in .jsonl", "pass the predictions that `florence2 predict` wrote")
    return Path(path)


def most_common_task(said: Sequence[PredictionRow]) -> str:
    """Give the task that most predictions answer: what references without a task are taken to ask."""
    return Counter(each.prediction.task for each in said).most_common(1)[0][0]


@dataclass(frozen=True, eq=False)
class EvalExample:
    """One question, all its right answers as the model should say them, and what was said, if anything."""

    sample: Sample
    task: Task
    targets: tuple[str, ...]
    prediction: Prediction | None

    @property
    def text(self) -> str:
        """Give the words that were said; "" where there was no answer."""
        return self.prediction.text if self.prediction and self.prediction.error is None else ""

    @property
    def references(self) -> Any:
        """Read the first right answer: text, or places in pixels."""
        return decode(self.task, self.targets[0], self._size())

    @property
    def answer(self) -> Any:
        """Read what was said: text, or places in pixels."""
        given = self.prediction.answer if self.prediction and self.prediction.error is None else None
        return given if isinstance(given, dict) else decode(self.task, self.text, self._size())

    def objects(self) -> tuple[Instances, Instances]:
        """Give the objects that were said and those wanted."""
        score = self.prediction.score if self.prediction else None
        said = _objects(self.answer, 1.0 if score is None else score, self.sample.id)
        return said, _objects(self.references, 1.0, self.sample.id)

    def _size(self) -> tuple[int, int]:
        return (1, 1) if self.task.output_type is OutputType.TEXT else self.sample.size()


_FORMS = {"bboxes": "bboxes_labels", "quad_boxes": "", "polygons": "polygons_labels"}


def _objects(answer: dict[str, Any], score: float, name: str) -> Instances:
    """Bring an answer of any kind into one form; where there are boxes and polygons, polygons become their boxes."""
    places: list[Any] = []
    labels: list[str] = []
    scores: list[float] = []
    for form, own in _FORMS.items():
        if not (here := answer.get(form)):
            continue
        names = answer.get(own, answer.get("labels")) or [""] * len(here)
        sure = answer.get(f"{form}_scores", answer.get("scores")) or [score] * len(here)
        if not len(here) == len(names) == len(sure):
            raise UserError(f"the answer about {name} has {len(here)} `{form}` and {len(names)} labels")
        if not all(_is_sound(form, place) for place in here) or not _are_numbers(sure):
            raise UserError(f"the answer about {name} has `{form}` that are no {form}", "give pixels as numbers")
        places += [_bounds(place) for place in here] if form == "polygons" and "bboxes" in answer else here
        labels += names
        scores += sure
    return Instances(places, labels, scores)


def _is_sound(form: str, place: Any) -> bool:
    if form == "polygons":
        return isinstance(place, list) and all(_are_numbers(run) for run in place) and any(len(r) > 1 for r in place)
    return _are_numbers(place) and len(place) == (4 if form == "bboxes" else 8)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _bounds(place: Sequence[Sequence[float]]) -> list[float]:
    xs, ys = [x for run in place for x in run[0::2]], [y for run in place for y in run[1::2]]
    return [min(xs), min(ys), max(xs), max(ys)]


@dataclass(frozen=True, eq=False)
class MatchResult:
    """All questions, and the names of what has no partner.

    `strays` are predictions that no reference asks for, `silent` questions without a prediction, `failed` those
    whose prediction is an error, `repeated` predictions that a later one replaced, `unlabelled` pictures without a
    right answer.
    """

    examples: list[EvalExample]
    unmatched: list[str]
    missing: list[str]
    failed: list[str]
    duplicates: list[str]
    unlabeled: list[str]


def match_predictions(said: Sequence[PredictionRow], wanted: ResolvedDataset) -> MatchResult:
    """Put predictions beside the questions they answer; questions keep the order of the references."""
    samples: dict[Key, list[Sample]] = {}
    for sample in wanted.samples:
        samples.setdefault(_key(sample.id, sample.task, sample.input), []).append(sample)
    by_path = {_key(_real(s.image), s.task, s.input): key for key, (s, *_) in samples.items()}
    answered: dict[Key, Prediction] = {}
    strays: list[str] = []
    repeated: list[str] = []
    for each in said:
        told = each.prediction
        by_name = _key(told.file_name, told.task, told.input)
        key = by_path.get(_key(_real(each.path), told.task, told.input), by_name)
        if key not in samples:
            strays.append(told.file_name)
        elif key in answered:
            repeated.append(told.file_name)
        if key in samples:
            answered[key] = told
    if not answered:
        raise _strangers(said, wanted)
    questions = [
        EvalExample(group[0], find_task(key[1]), _targets(group), answered.get(key)) for key, group in samples.items()
    ]
    silent = [q.sample.id for q in questions if q.prediction is None]
    failed = [q.sample.id for q in questions if q.prediction and q.prediction.error is not None]
    return MatchResult(questions, strays, silent, failed, repeated, [skipped.id for skipped in wanted.skipped])


def answered_by_all(sides: Sequence[MatchResult]) -> list[MatchResult]:
    """Leave out the questions that have no prediction on one of the sides, which ask the same questions."""
    columns = list(zip(*(side.examples for side in sides), strict=True))
    kept = [column for column in columns if all(question.prediction is not None for question in column)]
    if not kept:
        raise UserError("no question has a prediction on both sides", "compare predictions about the same pictures")
    return [replace(side, examples=[column[i] for column in kept]) for i, side in enumerate(sides)]


def _key(name: str, task: str, words: str) -> Key:
    asked, more = split_prompt(task)
    return name, asked.token, (words or more).strip()


def _real(image: Any) -> str:
    return os.path.realpath(image) if isinstance(image, Path) else ""


def _targets(group: Iterable[Sample]) -> tuple[str, ...]:
    return tuple(sample.target or "" for sample in group)


def _strangers(said: Sequence[PredictionRow], wanted: ResolvedDataset) -> UserError:
    tasks = sorted({each.task.name for each in said})
    asked = sorted({split_prompt(sample.task)[0].name for sample in wanted.samples})
    if not set(tasks) & set(asked):
        return UserError(
            f"the predictions answer `{tasks[0]}` and {wanted.source} asks `{asked[0]}`",
            "pass `--task` if the references have no task of their own",
        )
    first, other = said[0].prediction.file_name, wanted.samples[0].id
    return UserError(
        f"no prediction is about a picture of {wanted.source}: the first is {first}, not {other}",
        "pass the dataset of the pictures that were predicted",
    )
