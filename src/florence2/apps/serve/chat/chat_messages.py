"""The words and the images of chat messages, wherever clients put them.

Images are in parts of the content (`image_url` as an object or a string, `input_image`, `image`), beside it
(`image_url`, Ollama's `images`), before or after the words, or in a message of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from florence2.apps.serve.request_limits import RequestError

_IMAGE_KEYS = ("image_url", "image", "input_image", "data", "source", "url")


@dataclass(frozen=True)
class ChatPrompt:
    """The words of the last user message that has any, and the images of the last message that has any."""

    words: str
    images: tuple[str, ...]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> ChatPrompt:
    """Read the question of a chat; raise a RequestError where no message holds an image."""
    words = ""
    images: tuple[str, ...] = ()
    for message in messages:
        found = tuple(_images(message))
        text = _text(message.get("content")).strip()
        if found:
            images = found
        if text and message.get("role", "user") == "user":
            words = text
    if not images:
        raise RequestError(
            "the messages hold no image", "add an `image_url` part with `data:image/jpeg;base64,...` to the content"
        )
    return ChatPrompt(words, images)


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [] if content is None else [content]


def _text(content: Any) -> str:
    """Join the text parts of a content, which may be one string."""
    texts = []
    for part in _parts(content):
        text = part.get("text") if isinstance(part, Mapping) else part
        texts += [text] if isinstance(text, str) else []
    return "\n".join(texts)


def _images(message: Mapping[str, Any]) -> Iterator[str]:
    for part in _parts(message.get("content")):
        if isinstance(part, Mapping) and part.get("type") not in ("text", "input_text"):
            yield from _references(part)
    yield from _references({"image_url": message.get("image_url")})
    images = message.get("images")
    for image in images if isinstance(images, list) else []:
        yield from [image] if isinstance(image, str) else _references(image)


def _references(part: Any, depth: int = 3) -> Iterator[str]:
    """Yield the references to images in a part: strings, or objects that hold them."""
    if not isinstance(part, Mapping) or not depth:
        return
    for key in _IMAGE_KEYS:
        value = part.get(key)
        if isinstance(value, str) and value:
            yield value
            return
        if isinstance(value, Mapping):
            yield from _references(value, depth - 1)
            return
