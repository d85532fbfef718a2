"""Scores as a table for people and as JSON for programs.

Knows nothing of how scores are made, and no model.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from florence2.metrics.bootstrap import Estimate, Scores
from florence2.metrics.by_task import Change, Graded
from florence2.metrics.match_predictions import Paired, Question

Row = tuple[str, ...]

_MOST_NAMES = 10


def notes(paired: Paired, *, skipped: bool = False) -> list[str]:
    """Say what had no partner and how it counts."""
    counts = "left out" if skipped else "counted as wrong"
    said = [
        (paired.silent, "question", f"without a prediction, {counts}"),
        (paired.failed, "prediction", "with an error, counted as wrong"),
        (paired.strays, "prediction", "that no reference asks for, left out"),
        (paired.repeated, "prediction", "given again further down, where the last one counts"),
        (paired.unlabelled, "picture", "without a right answer, left out"),
    ]
    return [f"{_counted(len(names), word)} {of}; the first: {names[0]}" for names, word, of in said if names]


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def head_of(tasks: Sequence[Graded | Change]) -> Row:
    """Give the heads of the columns of `rows_of`."""
    compared = isinstance(tasks[0], Change)
    return ("score", "A", "B", "change", "95% interval", "p") if compared else ("score", "value", "95% interval")


def title_of(each: Graded | Change) -> str:
    """Name a task and how much was asked."""
    graded = each.after if isinstance(each, Change) else each
    pictures = len({question.sample.id for question in graded.questions})
    return f"{graded.task}: {_counted(len(graded.questions), 'question')}, {_counted(pictures, 'picture')}"


def rows_of(each: Graded | Change) -> Iterator[Row]:
    """Give the rows of one task."""
    measures = (each.after if isinstance(each, Change) else each).scores.measures
    for name, measure in measures.items():
        yield (name if measure.rises else f"{name} ↓", *_cells(each, name))


def _cells(each: Graded | Change, name: str) -> Row:
    if isinstance(each, Graded):
        return number(each.estimates[name].value), interval(each.estimates[name])
    change = each.changes[name]
    sides = [number(side.estimates[name].value) for side in (each.before, each.after)]
    sign = "+" if change.value is not None and change.value > 0 else ""
    return *sides, f"{sign}{number(change.value)}", interval(change), number(change.p)


def number(value: float | None) -> str:
    """Write a number for people."""
    return "–" if value is None else f"{value:.3f}"


def interval(estimate: Estimate) -> str:
    """Write the ends of an interval for people."""
    return "–" if estimate.low is None else f"{number(estimate.low)} to {number(estimate.high)}"


def tables(tasks: Sequence[Graded | Change]) -> Iterator[Table]:
    """Make the tables that are shown on the screen, one for each task."""
    for each in tasks:
        shown = Table(
            box=SIMPLE_HEAD, title=escape(title_of(each)), title_justify="left", title_style="bold", pad_edge=False
        )
        for place, head in enumerate(head_of(tasks)):
            width = 20 if place == 0 else 6
            shown.add_column(head, justify="right" if place else "left", no_wrap=True, min_width=width)
        for row in rows_of(each):
            shown.add_row(*row)
        yield shown


def as_json(
    tasks: Sequence[Graded | Change], paired: Sequence[Paired], about: Mapping[str, Any], worst: int = 12
) -> dict[str, Any]:
    """Give all scores as JSON; a score with nothing to divide by is null."""
    counts = [_counts(each) for each in paired]
    return {
        **about,
        "counts": counts[0] if len(counts) == 1 else dict(zip("ab", counts, strict=True)),
        "tasks": {_name(each): _task(each, worst) for each in tasks},
    }


def _counts(paired: Paired) -> dict[str, Any]:
    named = {
        "without_prediction": paired.silent,
        "failed": paired.failed,
        "without_reference": paired.strays,
        "repeated": paired.repeated,
        "without_answer": paired.unlabelled,
    }
    return {
        "questions": len(paired.questions),
        "pictures": len({question.sample.id for question in paired.questions}),
        **{name: {"number": len(names), "first": names[:_MOST_NAMES]} for name, names in named.items()},
    }


def _name(each: Graded | Change) -> str:
    return each.after.task if isinstance(each, Change) else each.task


def _task(each: Graded | Change, worst: int) -> dict[str, Any]:
    if isinstance(each, Change):
        return {
            "questions": len(each.after.questions),
            "scores": {
                name: {
                    "a": _estimate(each.before.estimates[name]),
                    "b": _estimate(each.after.estimates[name]),
                    "change": {**_estimate(change), "p": change.p},
                    "better": _better(each.after.scores, name),
                }
                for name, change in each.changes.items()
            },
        }
    found = {
        "questions": len(each.questions),
        "scores": {
            name: {**_estimate(estimate), "better": _better(each.scores, name)}
            for name, estimate in each.estimates.items()
        },
        "worst": [_case(question, good) for question, good in each.worst(worst)],
    }
    if each.scores.labels:
        found["labels"] = {
            label: None if value != value else round(value, 6) for label, value in each.scores.labels.items()
        }
    return found


def _better(scores: Scores, name: str) -> str:
    return "higher" if scores.measures[name].rises else "lower"


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if value is None else round(value, 6) for name, value in ends.items()}


def _case(question: Question, good: float) -> dict[str, Any]:
    case = {"file_name": question.sample.id, "input": question.sample.input, "good": round(good, 6)}
    error = question.prediction.error if question.prediction else "no prediction"
    case |= {"wanted": list(question.targets), "said": question.text}
    return case | ({"error": error} if error else {})
