"""Atomic writing of files, and valid JSON for them."""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path, mode: str = "w", *, sync: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` when the block ends: `path` is the old file or the new one, complete.

    An error in the block leaves `path` as it is. `mode` is `"w"` (UTF-8) or `"wb"`. With `sync`, the content is on
    the disk before it replaces `path`.
    """
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_SURROGATES = re.compile("[\ud800-\udfff]")


def to_json(value: Any, *, indent: int | None = None, encoding: str | None = "utf-8") -> str:
    """Return valid JSON that can be encoded in `encoding`.

    NaN and infinite numbers become null. A lone surrogate, which stands for a byte of a file name that is not UTF-8, is
    written as its JSON escape, so that it can be read back; in another encoding so is everything beyond ASCII.
    """
    is_utf8 = (encoding or "").lower().replace("_", "-") in {"utf-8", "utf8"}
    try:
        text = json.dumps(value, ensure_ascii=not is_utf8, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_non_finite(value), ensure_ascii=not is_utf8, indent=indent, allow_nan=False)
    return _SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_non_finite(each) for key, each in value.items()}
    return [_without_non_finite(each) for each in value] if isinstance(value, list | tuple) else value
