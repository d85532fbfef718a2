"""What lists of boxes and outlines hold, and the rows of the one JSONL that ask for it: both directions side by side.

Every format is read as `Annotated` pictures; `rows_of` says them for a task and `things_of` takes them from rows.
Knows no file format.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from florence2.config import DataSettings
from florence2.data.sample import Sample, Size
from florence2.data.tables import Row
from florence2.errors import UserError
from florence2.model.locations import decode
from florence2.model.tasks import TASKS, InputType, OutputType, Task, find_task

Box = list[float]  # [x1, y1, x2, y2] in pixels
Polygon = list[float]  # [x, y, x, y, ...] in pixels
NO_LABEL = "object"
_ALIKE = ("val", "valid", "validation")


@dataclass(frozen=True)
class Annotation:
    """One object: its label, its box, and its outline where there is one (several polygons, where it has parts).

    `score` is how sure a model was of it.
    """

    label: str
    box: Box
    polygons: tuple[Polygon, ...] = ()
    score: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class AnnotatedImage:
    """What a list says about one picture; `size` is what the list believes, `captions` is None where it has none."""

    file_name: str
    annotations: Sequence[Annotation]
    size: Size | None = None
    captions: Sequence[str] | None = None


class DatasetRow(NamedTuple):
    """A row, the words that name it, and its picture; a picture that is not `there` has no more than a name."""

    where: str
    row: Row
    image: Sample
    exists: bool = True


def bounding_box(polygons: Sequence[Polygon]) -> Box:
    """Give the box around polygons."""
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs), max(ys)]


def resolve_task(task: Task, captions: bool) -> Task:
    """Choose what a list of objects is asked: the task, or detection where the user named none.

    Raises UserError where the objects are no answer to what the user asks.
    """
    if captions or task.input_type is InputType.REGION or task.output_type is not OutputType.TEXT:
        return task
    if task == find_task(DataSettings.task):
        return next(row for row in TASKS if row.output_type is OutputType.BOXES)
    answered = ", ".join(
        row.name for row in TASKS if row.input_type is InputType.REGION or row.output_type is not OutputType.TEXT
    )
    raise UserError(f"a list of objects does not answer `{task.name}`", f"choose one of {answered} with --task")


def rows_from_annotations(about: AnnotatedImage, task: Task) -> Iterator[Row]:
    """Say what is known about a picture as answers to a task.

    Tasks about words ask once for each label, tasks about a region once for each object. A picture without objects
    has an empty answer where the task asks about the whole picture, and no row elsewhere.
    """
    start: Row = {"file_name": about.file_name}
    if about.size:
        start |= {"width": about.size[0], "height": about.size[1]}
    if about.captions is not None:
        if about.captions:
            yield {**start, "text": list(about.captions)}
        return
    start["task"] = task.token
    for asked, answer in _told(about.annotations, task):
        said = {"text": answer} if isinstance(answer, str) else {"answer": answer}
        yield {**start, **({"input": asked} if asked else {}), **said}


def _told(things: Sequence[Annotation], task: Task) -> Iterator[tuple[Any, Any]]:
    labels = list(dict.fromkeys(thing.label for thing in things))
    if task.input_type is InputType.REGION:
        for thing in things:
            if task.output_type is OutputType.TEXT:
                yield thing.box, thing.label
            elif thing.polygons:
                yield thing.box, _masks([thing])
    elif task.output_type is OutputType.POLYGONS:
        for label in labels:
            if outlined := [thing for thing in things if thing.label == label and thing.polygons]:
                yield label, _masks(outlined)
    elif task.output_type is OutputType.BOXES_OR_POLYGONS:
        for label in labels:
            found = _boxes([thing for thing in things if thing.label == label])
            yield label, {"bboxes": found["bboxes"], "bboxes_labels": found["labels"]}
    elif task.output_type is OutputType.PHRASES:
        in_order = sorted(things, key=lambda thing: labels.index(thing.label))
        yield from [(", ".join(labels), _boxes(in_order))] if things else []
    elif task.output_type is OutputType.QUADS:
        yield "", {"quad_boxes": [_quad(thing) for thing in things], "labels": [thing.label for thing in things]}
    else:
        yield "", _boxes(things)


def _boxes(things: Sequence[Annotation]) -> dict[str, Any]:
    return {"bboxes": [thing.box for thing in things], "labels": [thing.label for thing in things]}


def _masks(things: Sequence[Annotation]) -> dict[str, Any]:
    return {"polygons": [list(thing.polygons) for thing in things], "labels": [""] * len(things)}


def _quad(thing: Annotation) -> Polygon:
    """Give four corners: the outline, where it has four, else those of the box."""
    if len(thing.polygons) == 1 and len(thing.polygons[0]) == 8:
        return thing.polygons[0]
    x1, y1, x2, y2 = thing.box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def annotations_from_row(
    task: Task, asked: Any, answer: Any, text: str, size: Callable[[], Size]
) -> list[Annotation] | None:
    """Take the objects from a row: from its `answer` in pixels, else from the text; None for mere words."""
    if task.input_type is InputType.REGION and task.output_type is OutputType.TEXT:
        return [Annotation(text, _region(asked, size))] if text else []
    if task.output_type is OutputType.TEXT:
        return None
    value = answer if isinstance(answer, dict) else decode(task, text, size()).to_dict()
    return list(_taken(task, asked, value, size))


def _taken(task: Task, asked: Any, value: dict[str, Any], size: Callable[[], Size]) -> Iterator[Annotation]:
    for box, label, score in _columns(value, "bboxes"):
        yield Annotation(label or NO_LABEL, [float(side) for side in box], score=score)
    for quad, label, score in _columns(value, "quad_boxes"):
        yield Annotation(label or NO_LABEL, bounding_box([quad]), (list(quad),), score)
    for polygons, label, score in _columns(value, "polygons"):
        whole = tuple(list(polygon) for polygon in polygons if len(polygon) >= 6)
        if task.input_type is InputType.REGION:
            yield Annotation(NO_LABEL, _region(asked, size), whole, score)
        elif whole:
            label = label or (asked if isinstance(asked, str) else "")
            yield Annotation(label or NO_LABEL, bounding_box(whole), whole, score)


def _columns(value: dict[str, Any], form: str) -> Iterator[tuple[Any, str, float | None]]:
    """Give the places of one form, each with its label, "" where it has none, and its score."""
    places = value.get(form, [])
    labels, scores = (value.get(f"{form}_{kind}", value.get(kind, [])) for kind in ("labels", "scores"))
    for place, label, score in zip_longest(places, labels[: len(places)], scores[: len(places)]):
        yield place, label or "", score


def _region(asked: Any, size: Callable[[], Size]) -> Box:
    if isinstance(asked, list):
        return [float(side) for side in asked]
    boxes = decode(OutputType.REGIONS, str(asked), size()).bboxes
    if not boxes:
        raise UserError(f"`{asked}` is no region", "write a box as [x1, y1, x2, y2]")
    return list(boxes[0])


def image_beside(folder: Path, name: str) -> str:
    """Find the picture that a list names in a folder; by its last part where the list is of another machine."""
    plain = name.replace("\\", "/")
    if (folder / plain).is_file():
        return plain
    last = plain.rpartition("/")[2]
    return last if (folder / last).is_file() else plain


def split_aliases(split: str) -> tuple[str, ...]:
    """Give the names that a split may go by, the one asked for first."""
    return tuple(dict.fromkeys((split, *(_ALIKE if split in _ALIKE else ()))))
