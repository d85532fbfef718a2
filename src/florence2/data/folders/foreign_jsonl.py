"""Rows of other trainers' JSONL, translated to the columns of `columns.py`. Rows that fit already are unchanged.

maestro      image, prefix, suffix           columns that are known; its rounding makes bin 1000, which becomes 999
ms-swift     messages | query, response; images; objects {ref, bbox, bbox_type}
DocVQA       image, question, answers        prompted with `<DocVQA>question`, as the known fine-tunes are
OCR lines    image, lines [{text, points}]   four corners, or a box, for each line of text
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from florence2.data.columns import IMAGE_COLUMNS, TASK_COLUMNS, TEXT_COLUMNS, ColumnMapping
from florence2.data.folders.image_locator import ImageLocator
from florence2.data.image import ImageError, Size, image_size
from florence2.data.tables import NamedRow, Row
from florence2.errors import DatasetError
from florence2.model.locations import encode_region
from florence2.model.tasks import NUM_BINS, TASKS, OutputType, split_prompt

QUESTION_PROMPT = "<DocVQA>"
_BIN_OVERFLOW = re.compile(rf"<loc_{NUM_BINS}>")
_SWIFT_COLUMNS = ("messages", "query", "objects")
_REF = "<ref-object>"
_BBOX = "<bbox>"
_PLACEHOLDER = re.compile(f"{_REF}|{_BBOX}")
_ONLY_PLACEHOLDERS = re.compile(rf"(?:{_REF}(?:{_BBOX})+[\s,;]*)+")
_IMAGE = "<image>"
_UNREADABLE_LINE = "###"  # the text of an illegible line in OCR datasets


def translate_rows(rows: Iterator[NamedRow], columns: ColumnMapping, locate: ImageLocator) -> Iterator[NamedRow]:
    """Translate rows; `locate` finds an image whose size is needed to place boxes."""
    for where, row in rows:
        yield where, _translate(row, where, columns, locate)


def _translate(row: Row, where: str, columns: ColumnMapping, locate: ImageLocator) -> Row:
    if any(key in row for key in _SWIFT_COLUMNS) and not any(row.get(key) for key in TEXT_COLUMNS):
        return _translate_swift(row, where, locate)
    if "question" in row and not any(row.get(key) for key in TASK_COLUMNS):
        answers = row.get("answers", row.get("answer"))
        rest = {key: value for key, value in row.items() if key not in ("question", "answers", "answer")}
        return {**rest, "prompt": QUESTION_PROMPT, "input": str(row["question"]), "text": answers}
    if isinstance(row.get("lines"), list) and not row.get("answer"):
        return _translate_ocr_lines(row, where)
    text_columns = (columns.text,) if columns.text else TEXT_COLUMNS
    texts = {key: _clamp_bins(row[key]) for key in text_columns if isinstance(row.get(key), str)}
    return {**row, **texts} if texts else row


def _clamp_bins(text: str) -> str:
    """Replace the bin that has no token with the last one."""
    return _BIN_OVERFLOW.sub(f"<loc_{NUM_BINS - 1}>", text)


def _translate_swift(row: Row, where: str, locate: ImageLocator) -> Row:
    prompt, response = _prompt_and_response(row, where)
    images = row.get("images") or [next((row[key] for key in IMAGE_COLUMNS if row.get(key)), None)]
    images = images if isinstance(images, list) else [images]
    image = images[0] if images else None
    image = image.get("path") if isinstance(image, dict) else image
    if len(images) != 1 or not isinstance(image, str):
        raise DatasetError(f"{where} has {len(images)} images", "write one image in each row")

    def size() -> Size:
        try:
            return image_size(locate(row, image, where).path)
        except ImageError:
            return (1, 1)  # the value is never used: an image that cannot be read is skipped

    task, input_text = split_prompt(prompt.replace(_IMAGE, "").strip())
    translated: Row = {"file_name": image, "task": task.token}
    objects = _SwiftObjects.from_row(row, where, size)
    if input_text:
        translated["input"] = objects.fill(input_text)
    is_located = task.output_type in (OutputType.BOXES, OutputType.PHRASES)
    if is_located and _ONLY_PLACEHOLDERS.fullmatch(response.strip()):
        return {**translated, "answer": objects.to_answer(response)}
    return {**translated, "text": _clamp_bins(objects.fill(response))}


def _prompt_and_response(row: Row, where: str) -> tuple[str, str]:
    if "query" in row:
        return str(row["query"]), str(row.get("response") or "")
    messages = [message for message in row.get("messages") or [] if isinstance(message, dict)]
    prompts = [str(message.get("content")) for message in messages if message.get("role") == "user"]
    responses = [str(message.get("content")) for message in messages if message.get("role") == "assistant"]
    if len(prompts) != 1 or len(responses) != 1:
        raise DatasetError(
            f"{where} has {len(prompts)} user messages and {len(responses)} assistant messages",
            "write one of each in a row",
        )
    return prompts[0], responses[0]


@dataclass(frozen=True, eq=False)
class _SwiftObjects:
    """The values of the placeholders `<ref-object>` and `<bbox>`, in the order of the placeholders."""

    refs: Iterator[Any]
    boxes: Iterator[list[float]]
    is_normalized: bool
    size: Callable[[], Size]
    where: str

    @classmethod
    def from_row(cls, row: Row, where: str, size: Callable[[], Size]) -> "_SwiftObjects":
        objects = row.get("objects") or {}
        refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
        if not all(isinstance(box, list) and all(isinstance(side, int | float) for side in box) for box in boxes):
            raise DatasetError(
                f"{where} has an `objects.bbox` that is not a list of boxes", "write [[x1, y1, x2, y2], ...]"
            )
        bbox_type = objects.get("bbox_type") or "real"
        if bbox_type not in ("real", "norm1"):
            raise DatasetError(f"{where} has boxes of type `{bbox_type}`", "write `real` (pixels) or `norm1` (0 to 1)")
        return cls(iter(refs), iter(boxes), bbox_type == "norm1", size, where)

    def fill(self, text: str) -> str:
        """Replace the placeholders with labels and location tokens."""
        return _PLACEHOLDER.sub(
            lambda match: self._next_ref() if match[0] == _REF else encode_region(self._next_box(), self.size()), text
        )

    def to_answer(self, text: str) -> dict[str, list[Any]]:
        """Read a text that has placeholders only as boxes with labels."""
        answer: dict[str, list[Any]] = {"bboxes": [], "labels": []}
        label = ""
        for placeholder in _PLACEHOLDER.findall(text):
            if placeholder == _REF:
                label = self._next_ref()
            else:
                answer["bboxes"].append(self._next_box())
                answer["labels"].append(label)
        return answer

    def _next_ref(self) -> str:
        return str(self._next(self.refs, _REF))

    def _next_box(self) -> list[float]:
        box = self._next(self.boxes, _BBOX)
        return [side * self.size()[i % 2] for i, side in enumerate(box)] if self.is_normalized else list(box)

    def _next(self, values: Iterator[Any], placeholder: str) -> Any:
        for value in values:
            return value
        raise DatasetError(f"{self.where} has more `{placeholder}` than `objects`", "write one object for each")


def _translate_ocr_lines(row: Row, where: str) -> Row:
    """Translate lines of text, each with four corners (nested or flat) or a box, to quads."""
    quads, labels = [], []
    for line in row["lines"]:
        text = next((line[key] for key in ("text", "transcription", "label") if key in line), None)
        points = next((line[key] for key in ("points", "quad", "polygon", "box", "bbox") if key in line), None)
        if text is None or not isinstance(points, list):
            raise DatasetError(
                f"{where} has a line without text or without corners", 'write {"text": ..., "points": ...}'
            )
        flat = [side for point in points for side in (point if isinstance(point, list) else [point])]
        if len(flat) == 4:
            flat = [flat[0], flat[1], flat[2], flat[1], flat[2], flat[3], flat[0], flat[3]]
        if len(flat) != 8:
            raise DatasetError(
                f"{where}: line `{text}` has {len(flat)} numbers", "write four corners as 8 numbers, or a box as 4"
            )
        if text != _UNREADABLE_LINE:
            quads.append(flat)
            labels.append(str(text))
    task = next(each for each in TASKS if each.output_type is OutputType.QUADS)
    rest = {key: value for key, value in row.items() if key != "lines"}
    return {"task": task.token, **rest, "answer": {"quad_boxes": quads, "labels": labels}}
