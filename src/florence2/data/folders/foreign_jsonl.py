"""Rows of other trainers, translated to the columns of `columns.py`. Rows that fit already are unchanged.

maestro      image, prefix, suffix           columns that are known; its rounding makes bin 1000, which becomes 999
ms-swift     messages | query, response; images; objects {ref, bbox, bbox_type}
TRL, OpenAI  messages | prompt, completion   content is text, or a list of parts of type `text` and `image`
LLaVA        image, conversations            {from, value}
the Cauldron image, texts                    {user, assistant}
DocVQA, VQA  image, question, answers        prompted with `<DocVQA>question`, as the known fine-tunes are
detection    objects {bbox, category}        boxes as x, y, width, height, as in datasets on the Hugging Face hub
OCR lines    image, lines [{text, points}]   four corners, or a box, for each line of text

The rows of a table, of a tar and of `datasets` are translated alike.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from florence2.data.columns import (
    IMAGE_COLUMNS,
    OTHER_COLUMNS,
    TASK_COLUMNS,
    TEXT_COLUMNS,
    ColumnMapping,
    DatasetRow,
    is_missing,
)
from florence2.data.folders.conversations import (
    CONVERSATION_COLUMNS,
    TURNS_COLUMN,
    find_messages,
    translate_conversation,
)
from florence2.data.tables import Row
from florence2.errors import DatasetError
from florence2.files import parse_json
from florence2.model.geometry import GeometryKind, is_finite_number
from florence2.model.tasks import NUM_BINS, TASKS, OutputType, find_task

# Columns of our own predictions and reviews, of sizes, and of ids, which need no mention.
_SILENT_COLUMNS = "images image_dir num_tokens score run_id alternatives accepted width height id image_id tags".split()
QUESTION_PROMPT = "<DocVQA>"
FOREIGN_TARGETS = (*CONVERSATION_COLUMNS, TURNS_COLUMN, "query", "completion", "answers", "objects", "lines")
FOREIGN_COLUMNS = (*FOREIGN_TARGETS, "response", "question")
_NAMED_COLUMNS = frozenset(FOREIGN_COLUMNS) - {"answers", "completion", "response"}  # each makes a row a foreign one
_ANSWER_COLUMNS = ("answers", "answer", "text", "caption", "suffix")
_CHOICE_COLUMNS = ("choices", "options")
_LABEL_COLUMNS = ("category", "categories", "label", "labels", "category_name", "class", "name", "category_id")
_OVERFLOW_BIN = f"<loc_{NUM_BINS}>"
_LAST_BIN = f"<loc_{NUM_BINS - 1}>"
_UNREADABLE_LINE = "###"  # the text of an illegible line in OCR datasets


def translate_rows(rows: Iterable[DatasetRow], columns: ColumnMapping) -> Iterator[DatasetRow]:
    """Translate rows; a conversation of several turns becomes a row for each. A row that cannot be has its `error`."""
    unread = unread_columns(columns)
    for row in rows:
        names = unread(tuple(row.row)) if columns.with_targets else frozenset[str]()
        if names:
            row = row._replace(unread_columns=row.unread_columns | names)
        try:
            translated = _translate(row, columns)
        except DatasetError as error:
            yield row._replace(error=error)
            continue
        for each in translated:
            yield row if each is row.row else row._replace(row=each)


def unread_columns(columns: ColumnMapping) -> Callable[[tuple[str, ...]], frozenset[str]]:
    """Return a function of the columns of a row that selects those without a meaning."""
    named = {name for name in (columns.image, columns.text) if name}
    known = named.union(IMAGE_COLUMNS, TASK_COLUMNS, TEXT_COLUMNS, OTHER_COLUMNS, FOREIGN_COLUMNS, _SILENT_COLUMNS)

    @cache
    def select(names: tuple[str, ...]) -> frozenset[str]:
        return frozenset(names) - known

    return select


def _translate(dataset_row: DatasetRow, columns: ColumnMapping) -> list[Row]:
    row, where = dataset_row.row, dataset_row.where
    if isinstance(answer := row.get("answer"), str) and answer.lstrip().startswith("{"):
        row = {**row, "answer": _structured(answer)}
    if not _NAMED_COLUMNS.isdisjoint(row) or isinstance(row.get("prompt"), list):
        has_text = columns.has_text(row) and columns.text not in CONVERSATION_COLUMNS
        if not has_text and (messages := find_messages(row)):
            return [_clamp_bins(turn, columns) for turn in translate_conversation(messages, dataset_row, columns)]
        if not is_missing(row.get("question")) and not columns.has_prompt(row):
            return [_translate_question(row, where, columns)]
        has_target = has_text or not is_missing(row.get("answer"))
        if not has_target and isinstance(row.get("objects"), dict | list):
            return [_translate_objects(row, where, columns)]
        if isinstance(row.get("lines"), list) and not row.get("answer"):
            return [_translate_ocr_lines(row, where)]
    return [_clamp_bins(row, columns)]


def _structured(answer: str) -> Any:
    """Parse the JSON of positions in a table of texts; another text, which may be JSON too, is a target."""
    try:
        value = parse_json(answer)
    except ValueError:
        return answer
    return value if isinstance(value, dict) and any(kind in value for kind in GeometryKind) else answer


def _clamp_bins(row: Row, columns: ColumnMapping) -> Row:
    """Replace the bin that has no token with the last one in the targets of a row."""
    texts = {
        key: text.replace(_OVERFLOW_BIN, _LAST_BIN)
        for key in columns.text_columns
        if isinstance(text := row.get(key), str) and _OVERFLOW_BIN in text
    }
    return {**row, **texts} if texts else row


def _translate_question(row: Row, where: str, columns: ColumnMapping) -> Row:
    names = (columns.text,) if columns.text else _ANSWER_COLUMNS
    answers = next((row[name] for name in names if not is_missing(row.get(name))), None)
    is_number = isinstance(answers, int) or (isinstance(answers, str) and answers.isdecimal())
    if is_number and any(isinstance(row.get(name), list) for name in _CHOICE_COLUMNS):
        raise DatasetError(
            f"{where} has the number of a choice, `{answers}`, as its answer", "write the text of the answer"
        )
    texts = [text for answer in (answers if isinstance(answers, list) else [answers]) for text in _answer_texts(answer)]
    rest = {key: value for key, value in row.items() if key not in ("question", *_ANSWER_COLUMNS)}
    question = {"prompt": QUESTION_PROMPT, "input": str(row["question"])}
    return {**rest, **question, columns.text_columns[0]: texts[0] if len(texts) == 1 else texts}


def _answer_texts(answer: Any) -> list[Any]:
    """Return the texts of an answer: of VQA, `{"answer": ...}`, of SQuAD, `{"text": [...]}`, else itself.

    An integer becomes text: as the answer to a question it is no class number.
    """
    if isinstance(answer, dict):
        answer = answer.get("answer", answer.get("text", answer))
    if isinstance(answer, list):
        return answer
    return [str(answer) if isinstance(answer, int) and not isinstance(answer, bool) else answer]


def _translate_objects(row: Row, where: str, columns: ColumnMapping) -> Row:
    """Translate `objects` as datasets for detection on the hub have them, with boxes as x, y, width, height."""
    objects = row["objects"]
    if isinstance(objects, list):
        keys = dict.fromkeys(key for each in objects if isinstance(each, dict) for key in each)
        objects = {key: [each.get(key) for each in objects] for key in keys} if keys else {"bbox": []}
    boxes = objects.get("bbox")
    if not isinstance(boxes, list) or not all(map(_is_box, boxes)):
        raise DatasetError(
            f"{where} has `objects` whose `bbox` is not a list of boxes", "write each as [x, y, width, height]"
        )
    name = next((name for name in _LABEL_COLUMNS if isinstance(objects.get(name), list)), None)
    labels = objects[name] if name else []
    if len(labels) != len(boxes):
        raise DatasetError(f"{where} has {len(boxes)} boxes and {len(labels)} labels in `objects`", "add `category`")
    if not all(isinstance(label, str) for label in labels):
        raise DatasetError(
            f"{where} has class numbers in `objects.{name}`", "write the names of the classes in place of the numbers"
        )
    corners = [[x, y, x + width, y + height] for x, y, width, height in boxes]
    is_located = find_task(columns.task).output_type is not OutputType.TEXT
    task = {} if is_located or columns.has_prompt(row) else {"task": find_task("od").token}
    rest = {key: value for key, value in row.items() if key != "objects"}
    return {**rest, **task, "answer": {"bboxes": corners, "labels": labels}}


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(is_finite_number, box))


def _translate_ocr_lines(row: Row, where: str) -> Row:
    """Translate lines of text, each with four corners (nested or flat) or a box, to quads."""
    quads, labels = [], []
    for line in row["lines"]:
        line = line if isinstance(line, dict) else {}
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
