"""The features of a `tf.train.Example`, read from protobuf's wire format. Source: protobuf's documentation of it."""

import struct
from collections.abc import Iterator
from typing import Any

from florence2.errors import DatasetError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def read_example(content: bytes) -> dict[str, list[Any]]:
    """Read the features of a `tf.train.Example`: field 1 is a map with key (1) and value (2)."""
    features: dict[str, list[Any]] = {}
    try:
        for _, inner in _fields(content):
            for _, entry in _fields(inner):
                parts = dict(_fields(entry))
                features[parts[1].decode()] = _read_feature(parts.get(2, b""))
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, struct.error):
        raise DatasetError(
            "a record is not a tf.train.Example", "write it again, as the object detection API does"
        ) from None
    return features


def _read_feature(content: bytes) -> list[Any]:
    """Read a feature: a list of bytes (1), of floats (2) or of integers (3), each in field 1, packed or not."""
    values: list[Any] = []
    for kind, inner in _fields(content):
        for _, value in _fields(inner):
            if kind == 2 and isinstance(value, bytes):
                # 0.9 is stored as 0.89999998: seven digits are what a float of 32 bits has
                values += (float(f"{number:.7g}") for number in struct.unpack(f"<{len(value) // 4}f", value))
            elif kind == 3 and isinstance(value, bytes):
                at = 0
                while at < len(value):
                    number, at = _varint(value, at)
                    values.append(number)
            else:
                values.append(value)
    return values


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        wire = key & 7
        if wire == _VARINT:
            value: Any
            value, at = _varint(content, at)
        elif wire == _BYTES:
            length, at = _varint(content, at)
            value, at = content[at : at + length], at + length
        elif wire in (_FIXED32, _FIXED64):
            size, code = (4, "<f") if wire == _FIXED32 else (8, "<d")
            value, at = struct.unpack(code, content[at : at + size])[0], at + size
        else:
            raise ValueError(wire)
        yield key >> 3, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")
