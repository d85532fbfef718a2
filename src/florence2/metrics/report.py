"""Scores as a table for people and as JSON for programs.

Knows nothing of how scores are made, and no model.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from florence2.metrics.bootstrap import ConfidenceInterval, MetricValues
from florence2.metrics.by_task import ScoreDifference, TaskScores
from florence2.metrics.match_predictions import EvalExample, MatchResult

Row = tuple[str, ...]

_MOST_NAMES = 10


def match_notes(paired: MatchResult, *, skipped: bool = False) -> list[str]:
    """Say what had no partner and how it counts."""
    counts = "left out" if skipped else "counted as wrong"
    said = [
        (paired.missing, "question", f"without a prediction, {counts}"),
        (paired.failed, "prediction", "with an error, counted as wrong"),
        (paired.unmatched, "prediction", "that no reference asks for, left out"),
        (paired.duplicates, "prediction", "given again further down, where the last one counts"),
        (paired.unlabeled, "picture", "without a right answer, left out"),
    ]
    return [f"{_counted(len(names), word)} {of}; the first: {names[0]}" for names, word, of in said if names]


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def table_header(tasks: Sequence[TaskScores | ScoreDifference]) -> Row:
    """Give the heads of the columns of `rows_of`."""
    compared = isinstance(tasks[0], ScoreDifference)
    return ("score", "A", "B", "change", "95% interval", "p") if compared else ("score", "value", "95% interval")


def task_title(each: TaskScores | ScoreDifference) -> str:
    """Name a task and how much was asked."""
    graded = each.after if isinstance(each, ScoreDifference) else each
    images = len({question.sample.id for question in graded.examples})
    return f"{graded.task}: {_counted(len(graded.examples), 'question')}, {_counted(images, 'picture')}"


def table_rows(each: TaskScores | ScoreDifference) -> Iterator[Row]:
    """Give the rows of one task."""
    measures = (each.after if isinstance(each, ScoreDifference) else each).scores.metrics
    for name, measure in measures.items():
        yield (name if measure.higher_is_better else f"{name} ↓", *_cells(each, name))


def _cells(each: TaskScores | ScoreDifference, name: str) -> Row:
    if isinstance(each, TaskScores):
        return format_number(each.estimates[name].value), format_interval(each.estimates[name])
    change = each.changes[name]
    sides = [format_number(side.estimates[name].value) for side in (each.before, each.after)]
    sign = "+" if change.value is not None and change.value > 0 else ""
    return *sides, f"{sign}{format_number(change.value)}", format_interval(change), format_number(change.p)


def format_number(value: float | None) -> str:
    """Write a number for people."""
    return "–" if value is None else f"{value:.3f}"


def format_interval(estimate: ConfidenceInterval) -> str:
    """Write the ends of an interval for people."""
    return "–" if estimate.low is None else f"{format_number(estimate.low)} to {format_number(estimate.high)}"


def score_tables(tasks: Sequence[TaskScores | ScoreDifference]) -> Iterator[Table]:
    """Make the tables that are shown on the screen, one for each task."""
    for each in tasks:
        shown = Table(
            box=SIMPLE_HEAD, title=escape(task_title(each)), title_justify="left", title_style="bold", pad_edge=False
        )
        for place, head in enumerate(table_header(tasks)):
            width = 20 if place == 0 else 6
            shown.add_column(head, justify="right" if place else "left", no_wrap=True, min_width=width)
        for row in table_rows(each):
            shown.add_row(*row)
        yield shown


def scores_to_json(
    tasks: Sequence[TaskScores | ScoreDifference],
    paired: Sequence[MatchResult],
    about: Mapping[str, Any],
    worst: int = 12,
) -> dict[str, Any]:
    """Give all scores as JSON; a score with nothing to divide by is null."""
    counts = [_counts(each) for each in paired]
    return {
        **about,
        "counts": counts[0] if len(counts) == 1 else dict(zip("ab", counts, strict=True)),
        "tasks": {_name(each): _task(each, worst) for each in tasks},
    }


def _counts(paired: MatchResult) -> dict[str, Any]:
    named = {
        "without_prediction": paired.missing,
        "failed": paired.failed,
        "without_reference": paired.unmatched,
        "repeated": paired.duplicates,
        "without_answer": paired.unlabeled,
    }
    return {
        "questions": len(paired.examples),
        "pictures": len({question.sample.id for question in paired.examples}),
        **{name: {"number": len(names), "first": names[:_MOST_NAMES]} for name, names in named.items()},
    }


def _name(each: TaskScores | ScoreDifference) -> str:
    return each.after.task if isinstance(each, ScoreDifference) else each.task


def _task(each: TaskScores | ScoreDifference, worst: int) -> dict[str, Any]:
    if isinstance(each, ScoreDifference):
        return {
            "questions": len(each.after.examples),
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
        "questions": len(each.examples),
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


def _better(scores: MetricValues, name: str) -> str:
    return "higher" if scores.metrics[name].higher_is_better else "lower"


def _estimate(estimate: ConfidenceInterval) -> dict[str, float | None]:
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if value is None else round(value, 6) for name, value in ends.items()}


def _case(question: EvalExample, good: float) -> dict[str, Any]:
    case = {"file_name": question.sample.id, "input": question.sample.input, "good": round(good, 6)}
    error = question.prediction.error if question.prediction else "no prediction"
    case |= {"wanted": list(question.targets), "said": question.text}
    return case | ({"error": error} if error else {})
