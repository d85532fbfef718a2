"""The names of properties in the schemas of clients, and the answer that each means."""

from __future__ import annotations

import re

CAPTION, TITLE, LABELS, OCR = "caption", "title", "labels", "ocr"
# By whole name first, then by a part of the name, in this order.
_NAMES = {
    CAPTION: (
        "caption",
        "description",
        "alt_text",
        "alttext",
        "alt",
        "desc",
        "summary",
        "content",
        "answer",
        "response",
        "result",
        "output",
    ),
    TITLE: ("title", "headline", "name", "subject", "heading"),
    LABELS: (
        "keywords",
        "tags",
        "labels",
        "objects",
        "categories",
        "detections",
        "classes",
        "items",
        "boxes",
        "regions",
    ),
    OCR: ("text", "ocr", "ocr_text", "transcription", "visible_text", "transcript"),
}
_PARTS = {
    LABELS: ("keyword", "tag", "label", "object", "categor", "detection", "bbox", "bounding_box"),
    TITLE: ("title", "headline"),
    OCR: ("ocr", "transcri", "visible_text", "text_in"),
    CAPTION: ("caption", "descri", "alt_text", "summary"),
}


def source_of(name: str) -> str | None:
    """Return the answer that a property's name means."""
    snake = snake_case(name)
    for source, names in _NAMES.items():
        if snake in names:
            return source
    return next((source for source, parts in _PARTS.items() if any(part in snake for part in parts)), None)


def snake_case(name: str) -> str:
    """Write the name of a property in lower case, with `_` between its words."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return re.sub(r"[^a-z0-9]+", "_", snake).strip("_")
