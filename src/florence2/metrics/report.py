"""Reports of scores: tables for people and JSON for programs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from florence2.data.sample import ResolvedDataset
from florence2.log import count_kinds, count_noun
from florence2.metrics.bootstrap import ConfidenceInterval
from florence2.metrics.by_task import ScoreDifference, TaskScores
from florence2.metrics.match_predictions import EvalExample, MatchResult

TableRow = tuple[str, ...]

_MAX_NAMES = 10


def match_notes(matched: MatchResult, *, skipped: bool = False) -> list[str]:
    """Describe what did not match and how it counts, one line each."""
    missing = "skipped" if skipped else "counted as wrong"
    notes = [
        (matched.missing, "example", f"without a prediction, {missing}"),
        (matched.failed, "prediction", "with an error, counted as wrong"),
        (matched.unmatched, "prediction", "without a reference, ignored"),
        (matched.duplicates, "duplicate prediction", "replaced by a later one"),
        (matched.unlabeled, "image", "without a reference, ignored"),
    ]
    return [f"{count_noun(len(names), noun)} {rest}; the first: {names[0]}" for names, noun, rest in notes if names]


def reference_notes(references: ResolvedDataset) -> list[str]:
    """Describe what is not read of the references and what is doubtful in them, one line each; crowds are read."""
    unread = [(where, kind) for where, kind in references.ignored_shapes if kind != "crowd"]
    notes = (("not read", unread), ("doubtful", references.doubts()))
    return [
        f"{name}: {count_kinds(kind for _, kind in each)}, the first in {each[0][0]}" for name, each in notes if each
    ]


def table_header(tasks: Sequence[TaskScores | ScoreDifference]) -> TableRow:
    """Return the column names of `table_rows`."""
    is_comparison = isinstance(tasks[0], ScoreDifference)
    return ("score", "A", "B", "change", "95% interval", "p") if is_comparison else ("score", "value", "95% interval")


def task_title(task: TaskScores | ScoreDifference) -> str:
    """Return the task's name with its number of examples and images."""
    scores = task.after if isinstance(task, ScoreDifference) else task
    images = len({example.sample.id for example in scores.examples})
    return f"{scores.task}: {count_noun(len(scores.examples), 'example')}, {count_noun(images, 'image')}"


def table_rows(task: TaskScores | ScoreDifference) -> Iterator[TableRow]:
    """Yield one row for each metric of a task."""
    metrics = (task.after if isinstance(task, ScoreDifference) else task).scores.metrics
    for name, metric in metrics.items():
        yield (name if metric.higher_is_better else f"{name} ↓", *_cells(task, name))


def _cells(task: TaskScores | ScoreDifference, name: str) -> TableRow:
    if isinstance(task, TaskScores):
        return format_number(task.intervals[name].value), format_interval(task.intervals[name])
    change = task.changes[name]
    sides = [format_number(side.intervals[name].value) for side in (task.before, task.after)]
    sign = "+" if change.value is not None and change.value > 0 else ""
    return *sides, f"{sign}{format_number(change.value)}", format_interval(change), format_number(change.p)


def format_number(value: float | None) -> str:
    """Format a number with three decimals."""
    return "–" if value is None else f"{value:.3f}"


def format_interval(interval: ConfidenceInterval) -> str:
    """Format the ends of an interval."""
    return "–" if interval.low is None else f"{format_number(interval.low)} to {format_number(interval.high)}"


def score_tables(tasks: Sequence[TaskScores | ScoreDifference]) -> Iterator[Table]:
    """Create one table for each task, for the terminal."""
    for task in tasks:
        table = Table(
            box=SIMPLE_HEAD, title=escape(task_title(task)), title_justify="left", title_style="bold", pad_edge=False
        )
        for index, name in enumerate(table_header(tasks)):
            width = 20 if index == 0 else 6
            table.add_column(name, justify="right" if index else "left", no_wrap=True, min_width=width)
        for row in table_rows(task):
            table.add_row(*row)
        yield table


def scores_to_json(
    tasks: Sequence[TaskScores | ScoreDifference],
    matched: Sequence[MatchResult],
    sources: Mapping[str, Any],
    num_worst: int = 12,
) -> dict[str, Any]:
    """Convert all scores to JSON, after the keys of `sources`; a metric without a value is null."""
    counts = [_counts(each) for each in matched]
    return {
        **sources,
        "counts": counts[0] if len(counts) == 1 else dict(zip("ab", counts, strict=True)),
        "tasks": {_name(task): _task(task, num_worst) for task in tasks},
    }


def _counts(matched: MatchResult) -> dict[str, Any]:
    names_by_key = {
        "missing_predictions": matched.missing,
        "failed": matched.failed,
        "unmatched_predictions": matched.unmatched,
        "duplicate_predictions": matched.duplicates,
        "unlabeled_images": matched.unlabeled,
    }
    return {
        "examples": len(matched.examples),
        "images": len({example.sample.id for example in matched.examples}),
        **{key: {"number": len(names), "first": names[:_MAX_NAMES]} for key, names in names_by_key.items()},
    }


def _name(task: TaskScores | ScoreDifference) -> str:
    return task.after.task if isinstance(task, ScoreDifference) else task.task


def _task(task: TaskScores | ScoreDifference, num_worst: int) -> dict[str, Any]:
    if isinstance(task, ScoreDifference):
        return {
            "examples": len(task.after.examples),
            "scores": {
                name: {
                    "a": _interval(task.before.intervals[name]),
                    "b": _interval(task.after.intervals[name]),
                    "change": {**_interval(change), "p": change.p},
                    "higher_is_better": task.after.scores.metrics[name].higher_is_better,
                }
                for name, change in task.changes.items()
            },
        }
    found = {
        "examples": len(task.examples),
        "scores": {
            name: {**_interval(interval), "higher_is_better": task.scores.metrics[name].higher_is_better}
            for name, interval in task.intervals.items()
        },
        "worst": [_worst_case(example, quality) for example, quality in task.worst(num_worst)],
    }
    if task.scores.labels:
        found["labels"] = {
            label: None if value != value else round(value, 6) for label, value in task.scores.labels.items()
        }
    return found


def _interval(interval: ConfidenceInterval) -> dict[str, float | None]:
    numbers = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: None if value is None else round(value, 6) for name, value in numbers.items()}


def _worst_case(example: EvalExample, quality: float) -> dict[str, Any]:
    case = {"file_name": example.sample.id, "input": example.sample.input, "quality": round(quality, 6)}
    error = example.prediction.error if example.prediction else "no prediction"
    case |= {"references": list(example.targets), "prediction": example.text}
    return case | ({"error": error} if error else {})
