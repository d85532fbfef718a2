"""The column `answer` of a dataset row: boxes, quads or polygons in pixels, and their text with location tokens."""

from collections.abc import Callable
from typing import Any

from florence2.data.image import Size
from florence2.errors import DatasetError, UserError
from florence2.model.answer import Answer, GeometryKind
from florence2.model.locations import encode
from florence2.model.tasks import OutputType, Task


def answer_text(task: Task, answer: Any, where: str, size: Callable[[], Size]) -> str:
    """Encode a structured answer as target text, its objects in reading order (phrases in their own order)."""
    if isinstance(answer, str):
        return answer.strip()
    value, image_size = parse_answer(task, answer, where).without_crowds(), size()
    return encode(task, value if task.output_type is OutputType.PHRASES else value.in_reading_order(), image_size)


def parse_answer(task: Task, answer: Any, where: str) -> Answer:
    """Read a structured answer in pixels."""
    is_structured = isinstance(answer, dict) and any(kind in answer for kind in GeometryKind)
    if task.output_type is OutputType.TEXT or not is_structured:
        raise DatasetError(
            f"{where} has an `answer` that does not fit `{task.token}`",
            "set `task`, and write " + " or ".join(f"`{kind}`" for kind in GeometryKind) + " with `labels`",
        )
    try:
        return Answer.from_dict(answer, task.output_type)
    except UserError as error:
        raise DatasetError(f"{where} has an `answer` that cannot be encoded: {error.what}", error.hint) from None
