"""Paths of files in stores: `StorePath` is to `s3://bucket/a.tar` what `pathlib.Path` is to a local file."""

import io
import logging
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from florence2.data.stores.offline import refuse_offline
from florence2.data.stores.range_reader import RangeReader
from florence2.data.stores.retries import retry
from florence2.errors import DatasetError, MissingPackageError, OptionError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_REMOTE_EXTRA = ("s3", "s3a", "gs", "gcs", "http", "https")
_ONE_SLASH = re.compile(r"(s3a?|gc?s|hf|https?|abfss?|az|memory|file):/(?!/)")
_HTTP = ("http://", "https://")


def is_address(name: str) -> bool:
    """Return whether a name is an address such as `s3://bucket/a.tar` or `https://host/a.tar`."""
    return _ADDRESS.match(name) is not None


@dataclass(frozen=True, order=True)
class StorePath:
    """A file or folder at an address; its methods are those of `Path`, and read with retries."""

    address: str

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> "StorePath":
        return StorePath(f"{self.address.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """Return the last part."""
        return posixpath.basename(self._plain.rstrip("/"))

    @property
    def suffix(self) -> str:
        """Return the extension with its dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> "StorePath":
        """Return the folder."""
        scheme, _, rest = self._plain.partition("://")
        return StorePath(f"{scheme}://{posixpath.dirname(rest.rstrip('/'))}")

    @property
    def _plain(self) -> str:
        """The address without the query of an HTTP address."""
        return re.split(r"[?#]", self.address, maxsplit=1)[0] if self.address.startswith(_HTTP) else self.address

    def open(self, mode: str = "rb", *, encoding: str | None = None, newline: str | None = None) -> IO[Any]:
        """Open the file for reading, as bytes or text."""
        filesystem, path = open_filesystem(self.address)
        stream = io.BufferedReader(RangeReader(filesystem, path, self.address), 2**18)
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding=encoding, newline=newline)

    def read_bytes(self) -> bytes:
        """Read the file in one request."""
        filesystem, path = open_filesystem(self.address)
        return bytes(retry(lambda: filesystem.cat_file(path), self.address))

    def read_range(self, start: int, end: int) -> bytes:
        """Read a part of the file in one request."""
        filesystem, path = open_filesystem(self.address)
        return bytes(retry(lambda: filesystem.cat_file(path, start=start, end=end), self.address))

    def read_text(self, encoding: str | None = None) -> str:
        """Read the file as text."""
        return self.read_bytes().decode(encoding or "utf-8")

    def is_file(self) -> bool:
        """Return whether a file is at the address."""
        return self._type() == "file"

    def is_dir(self) -> bool:
        """Return whether a folder is at the address: in an object store, whether a key begins with it."""
        return self._type() == "directory"

    def _type(self) -> str:
        filesystem, path = open_filesystem(self.address)

        def read_type() -> str:
            filesystem.invalidate_cache()
            try:
                return str(filesystem.info(path)["type"])
            except FileNotFoundError:
                return ""

        return retry(read_type, self.address)


AnyPath = Path | StorePath


def check_slashes(name: str) -> None:
    """Raise an OptionError for an address with one slash after its scheme, which would be a local path."""
    if match := _ONE_SLASH.match(name):
        raise OptionError(f"{name} is not an address", f"write {match[1]}:// with two slashes")


def to_path(name: str) -> AnyPath:
    """Return the path of a name: an address, or a local file or folder."""
    return StorePath(name) if is_address(name) else Path(name).expanduser()


def open_filesystem(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path within it."""
    from fsspec.core import url_to_fs

    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    refuse_offline(address, scheme)
    if scheme in ("gs", "gcs"):
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # its tracebacks repeat what is raised
    try:
        filesystem, path = retry(lambda: url_to_fs(f"{scheme}://{rest}"), address)
    except DatasetError as error:
        if isinstance(error.__cause__, ImportError):
            raise MissingPackageError(
                f"{scheme}:// needs a package that is not installed: {error.__cause__}",
                'run `pip install "florence2[remote]"`' if scheme in _REMOTE_EXTRA else "install the package",
            ) from None
        if isinstance(error.__cause__, ValueError):
            raise DatasetError(
                f"{address} cannot be opened: {error.__cause__}", "pass s3://, gs://, hf://, http(s):// or a local path"
            ) from None
        raise
    return filesystem, str(path)


def list_files(folder: StorePath, *, recursive: bool = False) -> list[StorePath]:
    """List the files of a folder, sorted; an object store has no empty folders, so that an absent one has no files."""
    filesystem, path = open_filesystem(folder.address)

    def find() -> list[str]:
        filesystem.invalidate_cache()
        try:
            found = filesystem.find(path, maxdepth=None if recursive else 1)
        except FileNotFoundError:
            return []
        return [each for each in found if each != path.rstrip("/")]  # s3fs lists a folder that appears meanwhile

    return sorted(_with_scheme(filesystem, retry(find, str(folder), "listed")))


def list_matches(pattern: str) -> list[StorePath]:
    """List the files that match a pattern with `*` or `[...]`, sorted."""
    filesystem, path = open_filesystem(pattern)

    def find() -> list[str]:
        filesystem.invalidate_cache()
        return list(filesystem.glob(path))

    return sorted(_with_scheme(filesystem, retry(find, pattern, "listed")))


def _with_scheme(filesystem: Any, paths: list[str]) -> Iterator[StorePath]:
    return (StorePath(filesystem.unstrip_protocol(path)) for path in paths)
