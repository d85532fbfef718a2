"""Annotations of an image (labelled boxes and polygons), to and from the rows of the common JSONL.

Every annotation format is read as `AnnotatedImage`. `rows_from_annotations` makes rows for a task,
`annotations_from_row` reads them back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence2.config import DEFAULT_TASK
from florence2.data.folders.listing import find_name
from florence2.data.sample import Size
from florence2.data.tables import Row
from florence2.errors import DatasetError
from florence2.model.answer import Answer, AnswerItem, GeometryKind
from florence2.model.geometry import bounding_box
from florence2.model.locations import decode
from florence2.model.tasks import TASKS, InputType, OutputType, Task, find_task

Box = list[float]  # [x1, y1, x2, y2] in pixels
Polygon = list[float]  # [x, y, x, y, ...] in pixels
NO_LABEL = "object"
_VALIDATION_ALIASES = ("val", "valid", "validation")
# Kinds of `ignored_shapes` that are no objects of the image: an image with none but these has no object to miss.
_NO_OBJECTS = {
    "image without an annotation file",
    "name of another image",
    "task without an annotation",
    "further annotation of a task",
    "cancelled annotation",
    "tag",
    "attribute",
    "choices",
    "taxonomy",
    "number",
    "rating",
}


@dataclass(frozen=True)
class Annotation:
    """One object: its label, box and polygons; an object in several parts has several polygons.

    `score` is the confidence of a predicted object. A crowd is an area of many objects, as in COCO. `area` is the
    number of pixels of the object where the annotation has one and it is not that of the box.
    """

    label: str
    box: Box
    polygons: tuple[Polygon, ...] = ()
    score: float | None = field(default=None, compare=False)
    is_crowd: bool = False
    area: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class AnnotatedImage:
    """The annotations of one image; `size` is as the annotation file has it, `captions` is None where it has none.

    `ignored_shapes` names the kind of each shape that the reader does not read. `unlisted_annotations` names, on one
    image of a file, the annotations in that file whose image is not listed. `crowds` are no targets, and count
    in scores as COCO has it. `error` says why the annotations could not be read. `other_names` are further names that
    the image file may have.
    """

    file_name: str
    annotations: Sequence[Annotation]
    size: Size | None = None
    captions: Sequence[str] | None = None
    ignored_shapes: Sequence[str] = ()
    unlisted_annotations: Sequence[str] = ()
    crowds: Sequence[Annotation] = ()
    error: DatasetError | None = None
    other_names: Sequence[str] = ()


def read_image(name: str, where: str, read: Callable[..., AnnotatedImage], *arguments: Any) -> AnnotatedImage:
    """Read the annotations of one image by `read(*arguments)`; what prevents it is the image's `error`.

    `name` is the name of the image in that case, "" where it is not known.
    """
    try:
        return read(*arguments)
    except DatasetError as error:
        return AnnotatedImage(name, (), error=error)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
        what = f"{where} is not as its format has it: {type(error).__name__} {error}"
        return AnnotatedImage(name, (), error=DatasetError(what[:300], "export it again"))


def has_only_unread_objects(image: AnnotatedImage) -> bool:
    """Return whether an image has objects of which none is read; its empty answer would be untrue."""
    has_unread = any(kind not in _NO_OBJECTS for kind in image.ignored_shapes)
    return has_unread and not image.annotations and image.captions is None


def resolve_task(task: Task, has_captions: bool, default: OutputType = OutputType.BOXES) -> Task:
    """Return the task for an annotation file: the given one, or detection instead of the default captioning task.

    `default` is the output of that task: boxes, or quads for text lines.

    Raises DatasetError where annotations cannot be a target of the task.
    """
    if has_captions or task.input_type is InputType.REGION or task.output_type is not OutputType.TEXT:
        return task
    if task == find_task(DEFAULT_TASK):
        return next(row for row in TASKS if row.output_type is default)
    names = ", ".join(
        row.name for row in TASKS if row.input_type is InputType.REGION or row.output_type is not OutputType.TEXT
    )
    raise DatasetError(f"annotated objects are no target of `{task.name}`", f"pass one of {names} as --task")


def rows_from_annotations(image: AnnotatedImage, task: Task) -> Iterator[Row]:
    """Write the annotations of an image as rows of a task.

    A task with a text input has one row for each label, a task with a region input one for each object. An image
    without objects has an empty answer where the task is about the full image, and no row elsewhere. An image without
    captions has a row without a target in a file of captions.
    """
    common: Row = {"file_name": image.file_name}
    if image.size:
        common |= {"width": image.size[0], "height": image.size[1]}
    if image.captions is not None:
        yield {**common, "text": list(image.captions)}
        return
    common["task"] = task.token
    for task_input, answer in _inputs_and_answers(image, task):
        target = {"text": answer} if isinstance(answer, str) else {"answer": answer}
        yield {**common, **({"input": task_input} if task_input else {}), **target}


def _inputs_and_answers(image: AnnotatedImage, task: Task) -> Iterator[tuple[Any, Any]]:
    annotations, crowds = image.annotations, image.crowds
    labels = list(dict.fromkeys(annotation.label for annotation in annotations))
    if task.input_type is InputType.REGION:
        for annotation in annotations:
            if task.output_type is OutputType.TEXT:
                yield annotation.box, annotation.label
            elif annotation.polygons:
                yield annotation.box, _polygons_answer([annotation])
    elif task.output_type is OutputType.POLYGONS:
        for label in labels:
            if outlined := [each for each in annotations if each.label == label and each.polygons]:
                yield label, _polygons_answer(outlined)
    elif task.output_type is OutputType.BOXES_OR_POLYGONS:
        for label in labels:
            answer = _boxes_answer([each for each in (*annotations, *crowds) if each.label == label])
            yield label, {name if name == "bboxes" else f"bboxes_{name}": each for name, each in answer.items()}
    elif task.output_type is OutputType.PHRASES:
        in_order = sorted(annotations, key=lambda annotation: labels.index(annotation.label))
        yield from [(", ".join(labels), _boxes_answer((*in_order, *crowds)))] if annotations else []
    elif task.output_type is OutputType.QUADS:
        quads = (AnswerItem.quad(_quad(annotation), annotation.label) for annotation in annotations)
        yield "", Answer(OutputType.QUADS, tuple(quads)).to_dict()
    else:
        yield "", _boxes_answer((*annotations, *crowds))


def _boxes_answer(annotations: Iterable[Annotation]) -> dict[str, Any]:
    items = (
        AnswerItem(GeometryKind.BBOXES, (tuple(each.box),), each.label, None, each.is_crowd, each.area)
        for each in annotations
    )
    return Answer(OutputType.BOXES, tuple(items)).to_dict()


def _polygons_answer(annotations: Iterable[Annotation]) -> dict[str, Any]:
    return Answer(OutputType.POLYGONS, tuple(AnswerItem.mask(each.polygons) for each in annotations)).to_dict()


def _quad(annotation: Annotation) -> Polygon:
    """Return the polygon where it has four corners, else the corners of the box."""
    if len(annotation.polygons) == 1 and len(annotation.polygons[0]) == 8:
        return annotation.polygons[0]
    x1, y1, x2, y2 = annotation.box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def annotations_from_row(
    task: Task, task_input: Any, answer: Any, text: str, size: Callable[[], Size]
) -> list[Annotation] | None:
    """Read the objects of a row: from its `answer` in pixels, else from its text; None for a plain text target."""
    if task.input_type is InputType.REGION and task.output_type is OutputType.TEXT:
        return [Annotation(text, _region_box(task_input, size))] if text else []
    if task.output_type is OutputType.TEXT:
        return None
    is_structured = isinstance(answer, dict)
    value = Answer.from_dict(answer, task.output_type) if is_structured else decode(task, text, size())
    annotations = (_annotation_from_item(item, task, task_input, size) for item in value.without_crowds())
    return [annotation for annotation in annotations if annotation is not None]


def _annotation_from_item(item: AnswerItem, task: Task, task_input: Any, size: Callable[[], Size]) -> Annotation | None:
    """Convert an object; return None for a mask without area, unless its region is known."""
    if item.kind is GeometryKind.BBOXES:
        box = [float(side) for side in item.rings[0]]
        return Annotation(item.label or NO_LABEL, box, score=item.score, area=item.annotated_area)
    if item.kind is GeometryKind.QUAD_BOXES:
        return Annotation(item.label or NO_LABEL, item.bounding_box, (list(item.rings[0]),), item.score)
    polygons = tuple(list(ring) for ring in item.rings if len(ring) >= 6)
    if task.input_type is InputType.REGION:
        return Annotation(NO_LABEL, _region_box(task_input, size), polygons, item.score)
    label = item.label or (task_input if isinstance(task_input, str) else "")
    return Annotation(label or NO_LABEL, bounding_box(polygons), polygons, item.score) if polygons else None


def _region_box(region: Any, size: Callable[[], Size]) -> Box:
    if isinstance(region, list):
        return [float(side) for side in region]
    boxes = decode(OutputType.REGIONS, str(region), size()).bboxes
    if not boxes:
        raise DatasetError(f"`{region}` is not a region", "write a box as [x1, y1, x2, y2]")
    return list(boxes[0])


def image_beside(folder: Path, *names: str) -> str:
    """Return the name of an image within a folder; only its last part where the path is from another machine.

    `names` are the names that it may have; the first is returned where there is no file of any.
    """
    plain = [name.replace("\\", "/") for name in names]
    found = (find_name(folder, each) for name in plain for each in (name, name.rpartition("/")[2]))
    return next((name for name in found if name), plain[0])


def split_aliases(split: str) -> tuple[str, ...]:
    """Return the names that a split may have, the given one first."""
    return tuple(dict.fromkeys((split, *(_VALIDATION_ALIASES if split in _VALIDATION_ALIASES else ()))))
