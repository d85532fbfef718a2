"""Rows that are conversations about an image: ms-swift, TRL, OpenAI, LLaVA, the Cauldron. Each turn becomes a row.

ms-swift writes the places of labels and boxes as `<ref-object>` and `<bbox>`, and their values in `objects`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote

from florence2.data.columns import ColumnMapping, DatasetRow, is_missing
from florence2.data.image import ImageError, Size
from florence2.data.inspection.target_doubts import reject_fractions
from florence2.data.tables import Row
from florence2.errors import DatasetError
from florence2.model.geometry import is_finite_number
from florence2.model.locations import encode_region
from florence2.model.tasks import OutputType, split_prompt

CONVERSATION_COLUMNS = ("messages", "conversations")
TURNS_COLUMN = "texts"
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_REF = "<ref-object>"
_BBOX = "<bbox>"
_PLACEHOLDER = re.compile(f"{_REF}|{_BBOX}")
_ONLY_PLACEHOLDERS = re.compile(rf"(?:{_REF}(?:{_BBOX})+[\s,;]*)+")
_IMAGE = "<image>"


def find_messages(row: Row) -> list[Any]:
    """Return the messages of a conversation, [] where a row has none."""
    for name in CONVERSATION_COLUMNS:
        if isinstance(row.get(name), list) and row[name]:
            return list(row[name])
    if isinstance(turns := row.get(TURNS_COLUMN), list) and all(isinstance(turn, dict) for turn in turns):
        return [{"role": role, "content": turn.get(role)} for turn in turns for role in ("user", "assistant")]
    if isinstance(row.get("prompt"), list):
        completion = row.get("completion")
        return [*row["prompt"], *(completion if isinstance(completion, list) else [])]
    if is_missing(row.get("query")):
        return []
    response = row.get("response")
    return [{"role": "user", "content": row["query"]}, {"role": "assistant", "content": response or ""}]


def find_message_images(row: Row) -> list[str]:
    """Return the names or addresses of the images in the parts of a row's messages."""
    parts = [
        part
        for message in find_messages(row)
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for part in message["content"]
        if isinstance(part, dict)
    ]
    values = (part.get(key) for part in parts for key in ("image", "image_url", "path", "url") if part.get(key))
    names = (value.get("url") if isinstance(value, dict) else value for value in values)
    return [unquote(name[7:]) if name.startswith("file://") else name for name in names if isinstance(name, str)]


def translate_conversation(messages: list[Any], dataset_row: DatasetRow, columns: ColumnMapping) -> Iterator[Row]:
    """Translate each turn of a conversation about one image."""
    row, where = dataset_row.row, dataset_row.where

    @cache
    def size() -> Size:
        try:
            return dataset_row.image.size()
        except ImageError:
            return (1, 1)  # the value is never used: an image that cannot be read is skipped

    objects = _SwiftObjects.from_row(row, where, size)
    for prompt, response in _turns(messages, where, columns):
        task, input_text = split_prompt(prompt.replace(_IMAGE, "").strip())
        translated: Row = {"file_name": dataset_row.image.id, "task": task.token}
        if input_text:
            translated["input"] = objects.fill(input_text)
        is_located = task.output_type in (OutputType.BOXES, OutputType.PHRASES)
        if is_located and _ONLY_PLACEHOLDERS.fullmatch(response.strip()):
            yield {**translated, "answer": objects.to_answer(response)}
        else:
            text = objects.fill(response)
            yield {**translated, columns.text_columns[0]: text}


def _turns(messages: list[Any], where: str, columns: ColumnMapping) -> list[tuple[str, str]]:
    """Return (prompt, response) of each turn; a system message is no turn."""
    texts: dict[str, list[str]] = {"user": [], "assistant": []}
    for message in messages:
        role = str(message.get("role") or message.get("from")) if isinstance(message, dict) else "none"
        if role == "system":
            continue
        if role not in _ROLES:
            raise DatasetError(f"{where} has a message of the role `{role}`", "write `user` and `assistant` in turns")
        texts[_ROLES[role]].append(_message_text(message, where))
        if not 0 <= len(texts["user"]) - len(texts["assistant"]) <= 1:
            break
    prompts, responses = texts["user"], texts["assistant"]
    if len(prompts) == len(responses) + 1 and not columns.with_targets:
        responses = [*responses, ""]
    if not prompts or len(prompts) != len(responses):
        raise DatasetError(
            f"{where} has messages that are not pairs of `user` and `assistant`", "write one of each in turns"
        )
    return list(zip(prompts, responses, strict=True))


def _message_text(message: Row, where: str) -> str:
    content = message["content"] if message.get("content") is not None else message.get("value")
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        is_image = isinstance(part, dict) and part.get("type") in ("image", "image_url")
        text = part.get("text") if isinstance(part, dict) else part
        if not is_image and not isinstance(text, str):
            raise DatasetError(
                f"{where} has a message whose `content` is neither text nor a list of texts and images",
                'write for example {"type": "text", "text": "a cat"}',
            )
        texts.append(text if isinstance(text, str) and not is_image else "")
    return "".join(texts)


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
        objects = row["objects"] if isinstance(row.get("objects"), dict) else {}
        refs, boxes = objects.get("ref") or [], objects.get("bbox") or []
        if not isinstance(refs, list):
            raise DatasetError(f"{where} has an `objects.ref` that is not a list", 'write ["a label", ...]')
        is_list = isinstance(boxes, list)
        if not is_list or not all(isinstance(box, list) and all(map(is_finite_number, box)) for box in boxes):
            raise DatasetError(
                f"{where} has an `objects.bbox` that is not a list of boxes", "write [[x1, y1, x2, y2], ...]"
            )
        bbox_type = objects.get("bbox_type") or "real"
        if bbox_type not in ("real", "norm1"):
            raise DatasetError(f"{where} has boxes of type `{bbox_type}`", "write `real` (pixels) or `norm1` (0 to 1)")
        return cls(iter(refs), iter(boxes), bbox_type == "norm1", size, where)

    def fill(self, text: str) -> str:
        """Replace the placeholders with labels and location tokens."""
        return _PLACEHOLDER.sub(lambda match: self._next_ref() if match[0] == _REF else self._next_region(), text)

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

    def _next_region(self) -> str:
        box, size = self._next_box(), self.size()
        reject_fractions([box], size, self.where)
        return encode_region(box, size)

    def _next_ref(self) -> str:
        return str(self._next(self.refs, _REF))

    def _next_box(self) -> list[float]:
        box = self._next(self.boxes, _BBOX)
        return [side * self.size()[i % 2] for i, side in enumerate(box)] if self.is_normalized else list(box)

    def _next(self, values: Iterator[Any], placeholder: str) -> Any:
        for value in values:
            return value
        raise DatasetError(f"{self.where} has more `{placeholder}` than `objects`", "write one object for each")
