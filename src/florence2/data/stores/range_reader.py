"""A file in a store as a seekable stream: blocks are read by range requests, the next one ahead of its use."""

import io
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

from florence2.data.stores.retries import retry

BLOCK_SIZE = 8 * 2**20  # bytes; two blocks of an open file are in memory


class RangeReader(io.RawIOBase):
    """Reads a file of an fsspec file system; a block that fails is requested again.

    A server without range requests, or that does not know the size of the file, is read once into a temporary file.
    """

    def __init__(self, filesystem: Any, path: str, name: str, block_size: int = BLOCK_SIZE) -> None:
        self._filesystem, self._path, self._name = filesystem, path, name
        self._block_size = block_size
        self._position = 0
        self._index, self._block = -1, b""
        self._next: tuple[int, Future[bytes]] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._spool: BinaryIO | None = None
        size = retry(lambda: filesystem.info(path).get("size"), name)
        if size is None:
            self._spool = self._download()
            size = self._spool.seek(0, io.SEEK_END)
        self.size = int(size)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; nothing is read."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what one block has at the position."""
        if self._position >= self.size:
            return 0
        index, start = divmod(self._position, self._block_size)
        data = self._read_block(index)[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Stop reading ahead, and remove the temporary file."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._spool is not None:
            self._spool.close()
        super().close()

    def _read_block(self, index: int) -> bytes:
        if index != self._index:
            is_sequential = index == self._index + 1 and index > 0
            ahead = self._next[1] if self._next is not None and self._next[0] == index else None
            self._block = ahead.result() if ahead is not None else self._fetch(index)
            self._index, self._next = index, None
            if is_sequential and (index + 1) * self._block_size < self.size and self._spool is None:
                self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
                self._next = index + 1, self._pool.submit(self._fetch, index + 1)
        return self._block

    def _fetch(self, index: int) -> bytes:
        start = index * self._block_size
        end = min(start + self._block_size, self.size)
        if self._spool is None:
            data = retry(lambda: self._request(start, end), self._name)
            if len(data) == end - start:
                return data
            self._spool = self._download()  # the server answers every range with the complete file
        self._spool.seek(start)
        return self._spool.read(end - start)

    def _request(self, start: int, end: int) -> bytes:
        data = bytes(self._filesystem.cat_file(self._path, start=start, end=end))
        if len(data) < end - start:
            raise ConnectionResetError(f"{len(data):,} bytes came instead of {end - start:,}")
        return data

    def _download(self) -> BinaryIO:
        def download() -> BinaryIO:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the reader
            try:
                with self._filesystem.open(self._path, "rb", **self._full_read_options()) as source:
                    while data := source.read(2**20):
                        file.write(data)
            except BaseException:
                file.close()
                raise
            return file

        return retry(download, self._name)

    def _full_read_options(self) -> dict[str, Any]:
        """Return the options of `open` that make an HTTP server send the complete file in one answer."""
        return {"block_size": 0} if "http" in self._filesystem.protocol else {}
