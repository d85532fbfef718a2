"""The messages between a decoder process and its parent: JSON, with bytes behind it.

No message is a pickle, so a process that a hostile image has taken over cannot run code in its parent.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from florence2.data.image import Size

if TYPE_CHECKING:
    import numpy as np

PIXEL_BYTES = 768 * 768 * 3  # of the shared memory of a process; larger images travel through its pipe
_LENGTHS = struct.Struct("<QQ")  # of the JSON and of the bytes


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """The uint8 RGB pixels of an upright, resized image, and the `size` of the full image in pixels."""

    pixels_HWC: np.ndarray
    size: Size


def write_message(stream: IO[bytes], content: dict[str, Any], data: bytes = b"") -> None:
    """Write one message."""
    text = json.dumps(content).encode()
    stream.write(_LENGTHS.pack(len(text), len(data)) + text)
    if data:
        stream.write(data)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None where the other end has ended."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    text_length, data_length = _LENGTHS.unpack(lengths)
    text, data = stream.read(text_length), stream.read(data_length) if data_length else b""
    if len(text) < text_length or len(data) < data_length:
        return None
    content: dict[str, Any] = json.loads(text)
    return content, data
