"""Images that an earlier check found good, remembered in the cache folder by path, size and time of modification."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import PIL
from PIL import Image

from florence2.distributed import is_main_process
from florence2.files import cache_folder
from florence2.log import logger

_TITLE = b"florence2 checked images 1"
_DIGEST_BYTES = 16
_UNUSED_SECONDS = 180 * 86400  # after which the file of a dataset is removed
# A file that changed so shortly before the check may change again without another time of modification.
_RECENT_NS = 2 * 10**9


class CheckedImages:
    """The images of one dataset that were found good; one whose path, size or time of modification differs is none.

    Their file has a digest for each image, and no names. It is private, written in one piece, and of no use to another
    version of Pillow or with another limit of pixels. Without a file, nothing is remembered.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Read the file; one that is damaged is reported and counts as empty."""
        self._file = file
        self._known = self._read()  # digest of an image -> whether it was decoded
        self._good: dict[bytes, bool] = {}
        self._newest_ns = time.time_ns() - _RECENT_NS

    @property
    def num_unchanged(self) -> int:
        """Count the added images that had been found good before."""
        return len(self._good.items() & self._known.items())

    @classmethod
    def of_dataset(cls, name: str) -> Self:
        """Open those of a dataset, by its name or path, in the cache folder."""
        folder = cache_folder()
        return cls(folder / "checked_images" / _digest(str(Path(name).absolute())).hex() if folder else None)

    def key(self, path: Path) -> bytes | None:
        """Return what identifies the content of a file; None where it is absent or was changed a moment ago."""
        try:
            status = path.stat()
        except OSError:
            return None
        if self._file is None or status.st_mtime_ns > self._newest_ns:
            return None
        return _digest(f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}")

    def is_good(self, key: bytes | None, *, decoded: bool) -> bool:
        """Return whether an image was found good: by decoding it, where `decoded` says so."""
        return key is not None and key in self._known and (self._known[key] or not decoded)

    def add(self, key: bytes | None, *, decoded: bool) -> None:
        """Remember an image that was found good, now or earlier, with the key that it had before the check."""
        if key is not None:
            self._good[key] = decoded or self._known.get(key, False)

    def save(self) -> None:
        """Write the images that were added, instead of those that the file had; a folder may be read-only."""
        if self._file is None or not is_main_process():
            return
        try:
            if self._good != self._known:
                self._write(self._file)
            elif self._good:
                os.utime(self._file)
        except OSError as error:
            reason = error.strerror or error
            logger.info(f"{self._file} cannot be written ({reason}): the next start checks all images again")

    def _read(self) -> dict[bytes, bool]:
        try:
            content = self._file.read_bytes() if self._file else b""
        except OSError:
            content = b""
        title, _, body = content.partition(b"\n")
        checksum, records = body[:_DIGEST_BYTES], body[_DIGEST_BYTES:]
        if content and (not title.startswith(_TITLE) or checksum != _digest(records)):
            logger.warning(f"{self._file} is damaged: all images are checked again, and it is written anew")
        elif title == _title():
            size = _DIGEST_BYTES + 1
            rows = (records[start : start + size] for start in range(0, len(records), size))
            return {row[:-1]: bool(row[-1]) for row in rows}
        return {}

    def _write(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        records = b"".join(key + bytes([decoded]) for key, decoded in self._good.items())
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # private, and its own for each of two runs
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_title() + b"\n" + _digest(records) + records)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _remove_unused(path.parent)


def _remove_unused(folder: Path) -> None:
    """Remove the files of datasets that no training has read for long, and what killed runs left."""
    oldest = time.time() - _UNUSED_SECONDS
    for path in folder.iterdir():
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _title() -> bytes:
    """Return the first line of a file: its format, and what else decides whether an image is good."""
    return b"%b, Pillow %b, at most %b pixels" % (
        _TITLE,
        PIL.__version__.encode(),
        str(Image.MAX_IMAGE_PIXELS).encode(),
    )


def _digest(content: str | bytes) -> bytes:
    content = os.fsencode(content) if isinstance(content, str) else content
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
