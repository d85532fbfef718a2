"""JPEGs of a dataset's images, small for the grid and larger for the editor, made in threads and cached in memory."""

from __future__ import annotations

import asyncio
import io
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from florence2 import Sample

CACHE_BYTES = 64 * 2**20


class Thumbnails:
    """Makes JPEGs whose longer side has at most a number of pixels; `close()` stops the threads."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1), thread_name_prefix="thumbnails")
        self._cache: OrderedDict[tuple[Path, int, int], bytes] = OrderedDict()
        self._num_bytes = 0

    def close(self) -> None:
        """Stop the threads; images that wait are not decoded."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def jpeg(self, path: Path, side: int) -> bytes:
        """Return an image as JPEG. Raises ImageError where it cannot be read."""
        try:
            key = (path, side, path.stat().st_mtime_ns)
        except OSError:
            key = (path, side, 0)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        data = await asyncio.get_running_loop().run_in_executor(self._threads, _encode, path, side)
        if key not in self._cache:
            self._cache[key] = data
            self._num_bytes += len(data)
        while self._num_bytes > CACHE_BYTES:
            self._num_bytes -= len(self._cache.popitem(last=False)[1])
        return data


def _encode(path: Path, side: int) -> bytes:
    """Decode an image upright, a JPEG at a reduced scale, and encode it."""
    opened = Sample(path.name, path, "").open(min_size=_min_size(path, side))
    image = opened.image
    image.thumbnail((side, side), reducing_gap=2)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def _min_size(path: Path, side: int) -> tuple[int, int]:
    """Return the sides below which a reduced image would have fewer pixels than the thumbnail."""
    width, height = Sample(path.name, path, "").size()
    scale = min(1, side / max(width, height, 1))
    return max(1, int(width * scale)), max(1, int(height * scale))
