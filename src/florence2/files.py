"""Atomic writing of files."""

import os
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
