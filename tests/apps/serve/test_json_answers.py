"""JSON answers: properties by name, types, references, and what cannot be filled."""

import json

import pytest

from florence2 import Answer, OutputType, Prediction
from florence2.apps.serve.chat.json_answers import JsonFormat
from florence2.apps.serve.chat.property_names import CAPTION, LABELS, OCR, TITLE, source_of
from florence2.apps.serve.request_limits import RequestError

BOXES = Answer.from_dict(
    {"bboxes": [[0, 0, 1, 1]] * 3, "labels": ["cat", "dog", "cat"], "scores": [0.5] * 3}, OutputType.BOXES
)
NUMBER = {"type": "number"}
SIDES = {"type": "array", "items": {"type": "integer"}}
REST = [{"label": label, "bbox": [0, 0, 1, 1]} for label in ("dog", "cat")]
ANSWERS = {
    CAPTION: Prediction("i", "<CAPTION>", text="a long text"),
    TITLE: Prediction("i", "<CAPTION>", text="short"),
    LABELS: Prediction("i", "<OD>", text="cat", answer=BOXES),
    OCR: Prediction("i", "<OCR>", text="STOP"),
}


def array(maxItems: int | None = None, **properties: dict) -> dict:
    limit = {} if maxItems is None else {"maxItems": maxItems}
    return {"type": "array", "items": {"properties": properties, "required": list(properties)}, **limit}


def fill(schema: dict) -> object:
    return json.loads(JsonFormat(schema).fill(ANSWERS))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        *[(name, CAPTION) for name in ("caption", "Description", "alt_text", "altText", "image_description", "ALT")],
        *[(name, TITLE) for name in ("title", "headline", "seo_title")],
        *[(name, LABELS) for name in ("keywords", "Tags", "labels", "suggestedKeywords", "object_list")],
        *[(name, OCR) for name in ("text", "ocr", "visibleText", "ocrText")],
        *[(name, None) for name in ("rating", "mood", "x", "")],
    ],
)
def test_names(name: str, source: str | None) -> None:
    assert source_of(name) == source


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"title": {"type": "string"}, "text": {}}}, {"title": "short", "text": "STOP"}),
        ({"properties": {"tags": {"type": "string"}}}, {"tags": "cat, dog"}),
        ({"properties": {"tags": {"type": "array", "maxItems": 1}}}, {"tags": ["cat"]}),
        ({"properties": {"caption": {"type": "array", "items": {"type": "string"}}}}, {"caption": ["a long text"]}),
        ({"properties": {"caption": {"type": ["string", "null"]}}}, {"caption": "a long text"}),
        ({"properties": {"mood": {"type": "string"}}, "required": ["mood"]}, {"mood": ""}),
        ({"properties": {"moods": {"type": "array"}}, "required": ["moods"]}, {"moods": []}),
        ({"properties": {"stars": {"type": "integer"}, "title": {}}}, {"title": "short"}),
        ({"properties": {"stars": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}, {"stars": None}),
        ({"properties": {"m": {"type": "object", "properties": {"title": {}}}}}, {"m": {"title": "short"}}),
        (
            {"properties": {"m": {"$ref": "#/$defs/M"}}, "$defs": {"M": {"properties": {"ocr": {}}}}},
            {"m": {"ocr": "STOP"}},
        ),
        ({"properties": {"title": {"enum": ["short", "other"]}}}, {"title": "short"}),
        ({"type": "array", "items": {"type": "string"}}, ["cat", "dog"]),
        ({"type": "string"}, "a long text"),
        (
            {"properties": {"objects": array(label={}, bbox=SIDES)}},
            {"objects": [{"label": "cat", "bbox": [0, 0, 1, 1]}, *REST]},
        ),
        (
            array(
                class_name={}, box={"properties": {"xmin": NUMBER, "width": NUMBER}}, score=NUMBER, mood={}, maxItems=1
            ),
            [{"class_name": "cat", "box": {"xmin": 0, "width": 1}, "score": 0.5, "mood": ""}],
        ),
        ({"properties": {"boxes": {"type": "array", "items": SIDES}}}, {"boxes": [[0, 0, 1, 1]] * 3}),
        ({"properties": {"people": array(label={})}}, {"people": []}),
        ({"properties": {"object_count": {"type": "integer"}}}, {"object_count": 3}),
        (array(caption={}, tags={"type": "array"}), [{"caption": "a long text", "tags": ["cat", "dog"]}]),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_filled(schema: dict, value: object) -> None:
    assert fill(schema) == value


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"stars": {"type": "integer"}}, "required": ["stars"]},
        {"properties": {"title": {"enum": ["a", "b"]}}, "required": ["title"]},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1},
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_cannot_be_filled_is_an_error(schema: dict) -> None:
    with pytest.raises(RequestError, match="no task answers"):
        fill(schema)


def test_too_few_items_are_an_error() -> None:
    with pytest.raises(RequestError, match="fewer items than `tags` needs"):
        fill({"properties": {"tags": {"type": "array", "minItems": 9}}, "required": ["tags"]})


def test_any_object_names_its_text() -> None:
    assert json.loads(JsonFormat().fill({"0": ANSWERS[OCR]})) == {"text": "STOP"}
    assert json.loads(JsonFormat().fill({"0": ANSWERS[TITLE]})) == {"caption": "short"}


def test_references_in_a_circle_end() -> None:
    schema = {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"a": {"$ref": "#/$defs/A"}, "title": {}}}}}
    assert "short" in json.dumps(fill(schema))
    assert JsonFormat({"$ref": "#"}).sources() is not None


def test_formats() -> None:
    assert JsonFormat.parse(None) is None
    assert JsonFormat.parse({"type": "text"}) is None
    assert JsonFormat.parse("json") == JsonFormat()
    assert JsonFormat.parse({"type": "json_object"}) == JsonFormat()
    assert JsonFormat.parse({"type": "object", "properties": {}}) is not None
    for wrong in ({"type": "xml"}, "xml", 5, {"type": "json_schema"}, {"properties": {"\ud800": {}}}):
        with pytest.raises(RequestError):
            JsonFormat.parse(wrong)
