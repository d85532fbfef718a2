"""JSON arrays of detected objects: each object fills the schema of an element by the names of its properties.

label, class, category, name       the label           bbox, box, coordinates     x1, y1, x2, y2 in pixels
score, confidence                  the score           x1, xmin, left, width ...  one side of the box
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from florence2.apps.serve.chat.property_names import snake_case
from florence2.apps.serve.request_limits import RequestError

Resolve = Callable[[Any], tuple[Mapping[str, Any], bool]]
_LABEL = ("label", "class", "class_name", "category", "category_name", "object", "object_name")
_TEXT = (*_LABEL, "name", "title", "text", "caption", "description", "tag", "type", "phrase")
_BOX = ("bbox", "box", "rect", "coordinates", "region", "location", "position", "xyxy")
_SIDES: dict[str, Callable[[Sequence[float]], float]] = {
    **dict.fromkeys(("x", "x1", "xmin", "x_min", "left"), lambda box: box[0]),
    **dict.fromkeys(("y", "y1", "ymin", "y_min", "top"), lambda box: box[1]),
    **dict.fromkeys(("x2", "xmax", "x_max", "right"), lambda box: box[2]),
    **dict.fromkeys(("y2", "ymax", "y_max", "bottom"), lambda box: box[3]),
    **dict.fromkeys(("w", "width"), lambda box: box[2] - box[0]),
    **dict.fromkeys(("h", "height"), lambda box: box[3] - box[1]),
}
_NUMBERS = ("number", "integer")
_EMPTY: dict[str, Any] = {"string": "", "array": [], "object": {}}


@dataclass(frozen=True)
class DetectedObject:
    """An object of an answer: its label, its box as x1, y1, x2, y2 in pixels, and its score."""

    label: str
    box: Sequence[float]
    score: float | None


def is_object_schema(schema: Mapping[str, Any], resolve: Resolve) -> bool:
    """Return whether the schema of an element has room for a detected object: a box, or a label beside anything."""
    if is_box_schema(schema, resolve):
        return True
    properties = schema.get("properties")
    names = [snake_case(name) for name in properties] if isinstance(properties, Mapping) else []
    return any(name in _LABEL or name in ("x1", "xmin", "x_min") or _is_box_name(name) for name in names)


def is_box_schema(schema: Mapping[str, Any], resolve: Resolve) -> bool:
    """Return whether a schema is an array of numbers."""
    return schema.get("type") == "array" and resolve(schema.get("items", {}))[0].get("type") in _NUMBERS


class ObjectFiller:
    """Fills the schema of an element with one object after the other; `resolve` follows its references."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    def fill(self, schema: Any, item: DetectedObject, name: str = "", depth: int = 4) -> Any:
        """Return the value of a schema for an object; None where nothing of the object has this name and type."""
        resolved, _ = self._resolve(schema)
        properties = resolved.get("properties")
        if isinstance(properties, Mapping) and depth:
            return self._fill_properties(resolved, properties, item, depth - 1)
        kind, snake = str(resolved.get("type", "string")), snake_case(name)
        if is_box_schema(resolved, self._resolve):
            is_rounded = self._resolve(resolved.get("items", {}))[0].get("type") == "integer"
            is_box = not name or _is_box_name(snake)
            return [round(side) if is_rounded else side for side in item.box] if is_box else None
        if kind in _NUMBERS:
            value = _number(snake, item)
            return round(value) if value is not None and kind == "integer" else value
        allowed = [resolved["const"]] if "const" in resolved else resolved.get("enum")
        is_label = kind == "string" and snake in _TEXT and (not isinstance(allowed, list) or item.label in allowed)
        return item.label if is_label else None

    def _fill_properties(
        self, schema: Mapping[str, Any], properties: Mapping[str, Any], item: DetectedObject, depth: int
    ) -> dict[str, Any]:
        required = schema.get("required")
        values: dict[str, Any] = {}
        for key, inner in properties.items():
            value = self.fill(inner, item, key, depth)
            resolved, is_nullable = self._resolve(inner)
            if value is not None or is_nullable:
                values[key] = value
            elif isinstance(required, list) and key in required:
                kind = str(resolved.get("type", "string"))
                if kind not in _EMPTY or "enum" in resolved or "const" in resolved:
                    raise unanswered(key, kind)
                values[key] = _EMPTY[kind]
        return values


def unanswered(name: str, kind: str) -> RequestError:
    """Make the error of a required property that cannot be filled."""
    return RequestError(
        f"no task answers the property `{name[:60]}` of type {kind[:20]}", "make it optional, or allow null"
    )


def _is_box_name(name: str) -> bool:
    return any(part in name for part in _BOX)


def _number(name: str, item: DetectedObject) -> float | None:
    if name in _SIDES:
        return _SIDES[name](item.box)
    return item.score if any(part in name for part in ("score", "confidence", "probab")) else None
