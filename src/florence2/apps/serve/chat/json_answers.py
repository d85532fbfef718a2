"""JSON answers: the properties of a client's schema are filled by name with the answers of tasks.

    caption, description, alt_text      a caption              keywords, tags, labels     the labels of detection
    title, headline, name               the short caption      text, ocr                  the text in the image

An array of objects with labels or boxes holds the detected objects (`object_rows.py`).

A property that no task answers is empty where its type has an empty value; one that cannot be filled is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from florence2 import Answer, Prediction, find_task
from florence2.apps.serve.chat.free_words import is_caption_task
from florence2.apps.serve.chat.object_rows import (
    DetectedObject,
    ObjectFiller,
    is_object_schema,
    unanswered,
)
from florence2.apps.serve.chat.property_names import CAPTION, LABELS, source_of
from florence2.apps.serve.request_limits import RequestError, require_text

_MAX_DEPTH = 12
_EMPTY: dict[str, Any] = {"string": "", "array": [], "object": {}, "null": None}


@dataclass(frozen=True)
class JsonFormat:
    """The JSON schema that an answer has to follow; {} is any object."""

    schema: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, response_format: Any) -> JsonFormat | None:
        """Read OpenAI's `response_format` or Ollama's `format`; None is plain text."""
        if response_format in (None, "", "text"):
            return None
        require_text(json.dumps(response_format, ensure_ascii=False))
        if response_format == "json":
            return cls()
        if not isinstance(response_format, Mapping):
            raise RequestError("the response format is not an object", "pass `json_schema` with a schema")
        kind = response_format.get("type")
        if kind == "text":
            return None
        if kind == "json_schema":
            outer = response_format.get("json_schema")
            schema = outer.get("schema") if isinstance(outer, Mapping) else response_format.get("schema")
            if not isinstance(schema, Mapping):
                raise RequestError("the response format has no schema", "pass `json_schema: {name, schema}`")
            return cls(schema)
        if kind == "json_object":
            schema = response_format.get("schema")
            return cls(schema if isinstance(schema, Mapping) else {})
        if kind in ("object", "array", "string") or "properties" in response_format:  # a schema itself, as in Ollama
            return cls(response_format)
        raise RequestError(
            f"the response format {str(kind)[:40]!a} is not known", "pass `json_object` or `json_schema`"
        )

    @property
    def is_array(self) -> bool:
        """Return whether the answer is a list, so that several images have one element each."""
        return _SchemaReader(self.schema).resolve(self.schema)[0].get("type") == "array"

    @property
    def item(self) -> JsonFormat:
        """Return the format of one element."""
        items = _SchemaReader(self.schema).resolve(self.schema)[0].get("items")
        inner = items if isinstance(items, Mapping) else {}
        return JsonFormat(
            {**inner, **{key: self.schema[key] for key in ("$defs", "definitions") if key in self.schema}}
        )

    @property
    def is_any_object(self) -> bool:
        """Return whether the schema names no property, so that any object is right."""
        return not _SchemaReader(self.schema).has_content()

    def sources(self) -> set[str]:
        """Return which answers the schema needs."""
        return _SchemaReader(self.schema).sources()

    def fill(self, answers: Mapping[str, Prediction]) -> str:
        """Write the JSON of one image from the predictions of the sources."""
        if self.is_any_object:
            value: Any = _any_object(list(answers.values()))
        else:
            value = _SchemaReader(self.schema).fill(self.schema, "", answers, is_required=True)
        return json.dumps(value, ensure_ascii=False)


def labels_of(prediction: Prediction | None) -> list[str]:
    """Return the distinct labels of a detection."""
    answer = prediction.answer if prediction else None
    return [label for label in dict.fromkeys(answer.labels) if label] if isinstance(answer, Answer) else []


def objects_of(prediction: Prediction | None) -> list[DetectedObject]:
    """Return the objects of a detection."""
    return [
        DetectedObject(item.label, item.bounding_box, item.score) for item in (prediction and prediction.answer) or ()
    ]


def _any_object(predictions: Sequence[Prediction]) -> dict[str, Any]:
    if len(predictions) != 1:
        return {"predictions": [each.to_json() for each in predictions]}
    [prediction] = predictions
    if prediction.answer is not None:
        return dict(prediction.answer.to_dict())
    return {"caption" if is_caption_task(find_task(prediction.task)) else "text": prediction.text}


class _SchemaReader:
    """Walks a schema: `$ref` within it, `anyOf` with null, objects, arrays and plain values."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def has_content(self) -> bool:
        schema, _ = self.resolve(self._root)
        return bool(schema.get("properties")) or schema.get("type") in ("array", "string")

    def resolve(self, schema: Any, depth: int = _MAX_DEPTH) -> tuple[Mapping[str, Any], bool]:
        """Return a schema without references and alternatives, and whether null is allowed."""
        if not isinstance(schema, Mapping) or depth <= 0:
            return {}, False
        if isinstance(reference := schema.get("$ref"), str):
            return self.resolve(self._target(reference), depth - 1)
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(options := schema.get(key), list) and options:
                resolved = [self.resolve(option, depth - 1) for option in options]
                is_nullable = any(option.get("type") == "null" or nullable for option, nullable in resolved)
                chosen = next((option for option, _ in resolved if option.get("type") != "null"), {})
                return chosen, is_nullable
        kind = schema.get("type")
        if isinstance(kind, list):
            chosen_type = next((each for each in kind if each != "null"), "null")
            return {**schema, "type": chosen_type}, "null" in kind
        return schema, kind == "null"

    def _target(self, reference: str) -> Any:
        target: Any = self._root
        for step in reference.removeprefix("#").strip("/").split("/"):
            target = target.get(step) if isinstance(target, Mapping) and step else target
        return {} if target is self._root and reference != "#" else target

    def sources(self) -> set[str]:
        """Return the answers that any property needs."""
        return {source for source in self._walk(self._root, "", _MAX_DEPTH) if source}

    def _walk(self, schema: Any, name: str, depth: int) -> Iterator[str | None]:
        resolved, _ = self.resolve(schema)
        if depth <= 0:
            return
        if properties := _properties(resolved):
            for key, value in properties.items():
                yield from self._walk(value, key, depth - 1)
        elif not name and self._is_list_of_one(resolved):
            yield from self._walk(resolved["items"], name, depth - 1)
        else:
            yield self._source(name, resolved)

    def _is_list_of_one(self, schema: Mapping[str, Any]) -> bool:
        """Return whether a schema is an array of objects that each describe an image, as for several images."""
        items, _ = self.resolve(schema.get("items", {}))
        return schema.get("type") == "array" and bool(_properties(items)) and not is_object_schema(items, self.resolve)

    def _source(self, name: str, schema: Mapping[str, Any]) -> str | None:
        """Return the source of a leaf; a nameless array holds labels, a nameless string the caption."""
        if name:
            return source_of(name)
        return {"array": LABELS, "string": CAPTION}.get(str(schema.get("type")))

    def fill(
        self, schema: Any, name: str, answers: Mapping[str, Prediction], *, is_required: bool, depth: int = _MAX_DEPTH
    ) -> Any:
        """Return the value of a schema; `_OMITTED` where it is optional and cannot be filled."""
        resolved, is_nullable = self.resolve(schema)
        kind = str(resolved.get("type") or ("object" if _properties(resolved) else "string"))
        source = self._source(name, resolved)
        if kind == "object" and depth > 0:
            required = resolved.get("required")
            names = required if isinstance(required, list) else []
            filled = {
                key: self.fill(value, key, answers, is_required=key in names, depth=depth - 1)
                for key, value in _properties(resolved).items()
            }
            return {key: value for key, value in filled.items() if value is not _OMITTED}
        if not name and depth > 0 and self._is_list_of_one(resolved):
            return [self.fill(resolved["items"], name, answers, is_required=True, depth=depth - 1)]
        value = self._leaf(kind, source, resolved, answers)
        if value is not _OMITTED:
            return value
        if is_nullable:
            return None
        if is_required:
            if kind == "array" and name and source and resolved.get("minItems"):
                raise RequestError(f"the answer has fewer items than `{name[:60]}` needs", "lower its `minItems`")
            raise unanswered(name, kind)
        return _OMITTED

    def _leaf(self, kind: str, source: str | None, schema: Mapping[str, Any], answers: Mapping[str, Prediction]) -> Any:
        allowed = [schema["const"]] if "const" in schema else schema.get("enum")
        prediction = answers.get(source) if source else None
        if kind == "array":
            return self._array(source, schema, prediction)
        if kind in ("integer", "number") and source == LABELS:
            return len(objects_of(prediction))
        if kind not in _EMPTY or not isinstance(kind, str):
            return _OMITTED
        text = ", ".join(labels_of(prediction)) if source == LABELS else prediction.text if prediction else ""
        if isinstance(allowed, list):
            return text if text in allowed else _OMITTED
        return text if kind == "string" else _EMPTY[kind]

    def _array(self, source: str | None, schema: Mapping[str, Any], prediction: Prediction | None) -> Any:
        items, _ = self.resolve(schema.get("items", {}))
        values: list[Any] = []
        if source == LABELS and is_object_schema(items, self.resolve):
            filler = ObjectFiller(self.resolve)
            values = [filler.fill(items, item) for item in objects_of(prediction)]
        elif items.get("type", "string") == "string" and "enum" not in items:
            values = labels_of(prediction) if source == LABELS else [prediction.text] if prediction else []
        limit = schema.get("maxItems")
        values = values[:limit] if isinstance(limit, int) and limit >= 0 else values
        fewest = schema.get("minItems")
        return _OMITTED if isinstance(fewest, int) and len(values) < fewest else values


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


class _Omitted:
    """The value of a property that is left out."""


_OMITTED = _Omitted()
