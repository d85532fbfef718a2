"""Writing of tar shards: for each image a record of the image and its rows."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from florence2.data.tables import Row
from florence2.files import to_json

PER_SHARD = 1000  # images in each tar that is written


def write_shards(folder: Path, images: Iterable[tuple[str, bytes, list[Row]]], per_shard: int = PER_SHARD) -> int:
    """Write tars `000000.tar`, ... of (file name, encoded image, rows); return the number of tars.

    Record names are numbers, because a dot or a folder in a file name could split a record.
    """
    number = -1
    tar: tarfile.TarFile | None = None
    try:
        for number, (name, encoded, rows) in enumerate(images):
            if number % per_shard == 0:
                if tar:
                    tar.close()
                tar = tarfile.open(folder / f"{number // per_shard:06d}.tar", "w")  # noqa: SIM115
            assert tar is not None
            _add_file(tar, f"{number:08d}{Path(name).suffix.lower()}", encoded)
            content: Any = rows[0] if len(rows) == 1 else rows
            _add_file(tar, f"{number:08d}.json", to_json(content).encode())
    finally:
        if tar:
            tar.close()
    return number // per_shard + 1


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
