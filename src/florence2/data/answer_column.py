"""The column `answer` of a dataset row: boxes, quads or polygons in pixels, and their text with location tokens."""

from collections.abc import Callable, Mapping
from typing import Any

from florence2.data.image import Size
from florence2.data.inspection.target_doubts import Doubt, object_doubts, reject_fractions, reject_surrogates
from florence2.data.tables import Row
from florence2.errors import DatasetError, UserError
from florence2.model.answer import Answer, GeometryKind
from florence2.model.locations import encode
from florence2.model.tasks import OutputType, Task


def encode_answer(task: Task, row: Row, where: str, size: Callable[[], Size]) -> tuple[str, tuple[Doubt, ...]]:
    """Encode the structured answer of a row as target text, its objects in reading order (phrases in their own order).

    The second value names what is probably wrong with it.
    """
    answer = row["answer"]
    if isinstance(answer, str):
        return answer.strip(), ()
    image_size = size()
    value = check_answer(task, answer, where, image_size).without_crowds()
    ordered = value if task.output_type is OutputType.PHRASES else value.in_reading_order()
    is_resized = len(value) > 0 and has_other_size(row, image_size)
    doubts = (*((Doubt.SIZE,) if is_resized else ()), *object_doubts(value, image_size))
    text = encode(task, ordered, image_size)
    reject_surrogates(text, where)
    return text, doubts


def check_answer(task: Task, answer: Any, where: str, size: Size) -> Answer:
    """Read a structured answer; coordinates that are no pixels raise a DatasetError."""
    value = parse_answer(task, answer, where)
    reject_fractions((ring for item in value for ring in item.rings), size, where)
    return value


def has_other_size(row: Mapping[str, Any], size: Size) -> bool:
    """Return whether a row has a width and a height in pixels, and not those of its image."""
    annotated = row.get("width"), row.get("height")
    return all(isinstance(side, int) for side in annotated) and annotated != size


def parse_answer(task: Task, answer: Any, where: str) -> Answer:
    """Read a structured answer in pixels."""
    is_structured = isinstance(answer, dict) and any(kind in answer for kind in GeometryKind)
    if task.output_type is OutputType.TEXT or not is_structured:
        raise DatasetError(
            f"{where} has an `answer` that does not fit `{task.token}`",
            "set `task`, and write " + " or ".join(f"`{kind}`" for kind in GeometryKind) + " with `labels`",
        )
    labels: list[Any] = next(
        (answer[name] for name in ("labels", "bboxes_labels") if isinstance(answer.get(name), list)), []
    )
    if any(isinstance(label, int | float) for label in labels):
        raise DatasetError(
            f"{where} has class numbers in the labels of its `answer`",
            "write the names of the classes in place of the numbers",
        )
    try:
        return Answer.from_dict(answer, task.output_type)
    except UserError as error:
        raise DatasetError(f"{where} has an `answer` that cannot be encoded: {error.what}", error.hint) from None
