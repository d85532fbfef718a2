"""Listings of folders, text files, and the error for a folder without images.

Names that start with a dot are ignored.
"""

import errno
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from florence2.data.folders.image_names import is_image_name, missing_package
from florence2.data.stores.store_path import AnyPath
from florence2.errors import DatasetError

_MASKS = ("masklabel", "condlabel")
# Files beside images that are no images and need no mention.
_TEXT_EXTENSIONS = frozenset(
    f".{name}" for name in ("txt caption json jsonl csv tsv parquet xml yaml yml md html py ini log npz db".split())
)


@dataclass(frozen=True)
class Listing:
    """The files of one folder, sorted by name; `subpath` is its posix path within the source, "" at the top.

    `special_names` are pipes, sockets and devices, which are never opened.
    """

    path: Path
    subpath: str
    names: tuple[str, ...]
    special_names: tuple[str, ...] = ()

    def id(self, name: str) -> str:
        """Return a file's posix path relative to the source."""
        return f"{self.subpath}/{name}" if self.subpath else name

    def images(self) -> list[str]:
        """Return the names of the image files, without masks."""
        return [name for name in self._images if name not in self._masks] if self._masks else self._images

    def ignored_files(self) -> list[tuple[str, str]]:
        """Return path and kind of each file that may be meant as an image and is not read as one."""
        special = [(self.id(name), "pipe or device") for name in self.special_names]
        masks = [(self.id(name), "mask") for name in self._images if name in self._masks]
        others = self.names if len(self._images) < len(self.names) else ()
        return special + masks + [(self.id(name), kind) for name in others if (kind := _unread_kind(name))]

    @cached_property
    def _images(self) -> list[str]:
        return [name for name in self.names if is_image_name(name)]

    @cached_property
    def _masks(self) -> set[str]:
        """Return the images that are OneTrainer's masks of others: `a-masklabel.png` beside `a.jpg`."""
        parts = {name: name.rpartition(".")[0].rpartition("-") for name in self._images if "label." in name}
        stems = {name.rpartition(".")[0] for name in self._images} if parts else set()
        return {name for name, (stem, _, kind) in parts.items() if kind in _MASKS and stem in stems}


def _unread_kind(name: str) -> str:
    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122
    if extension in _TEXT_EXTENSIONS or is_image_name(name):
        return ""
    package = missing_package(name)
    return (extension or "without an extension") + (f" (install `{package}`)" if package else "")


def walk(folder: Path, recursive: bool, *, failed: list[tuple[str, str]] | None = None) -> Iterator[Listing]:
    """List a folder and, with `recursive`, its subfolders, each after its parent and by name.

    A folder that cannot be listed raises DatasetError; with `failed`, subpath and reason of a subfolder are appended to
    it instead, and the others are listed.
    """
    pending: list[tuple[Path, str, tuple[tuple[int, int], ...]]] = [(folder, "", ())]
    while pending:
        path, subpath, ancestors = pending.pop()
        try:
            identity, (names, subfolders, special) = _identity(path), _scan(path)
        except DatasetError as error:
            if failed is None or not subpath:
                raise
            failed.append((subpath, error.what))
            continue
        if identity in ancestors:
            continue  # a symbolic link to a parent folder
        yield Listing(path, subpath, names, special)
        if not recursive:
            return
        lineage = (*ancestors, identity)
        pending += [(path / name, f"{subpath}/{name}" if subpath else name, lineage) for name in reversed(subfolders)]


def file_names(folder: Path) -> Iterator[str]:
    """Yield the names of the files in a folder as the file system lists them, in no order and without a list."""
    names: list[str] = []
    for entry in _entries(folder):
        if _choose(entry, names, [], []) is names:
            yield entry.name


def _identity(folder: Path) -> tuple[int, int]:
    try:
        stat = folder.stat()
    except OSError as error:
        raise _listing_error(folder, error) from None
    return stat.st_dev, stat.st_ino


def _scan(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the names of files, subfolders, and special files, sorted."""
    names: list[str] = []
    subfolders: list[str] = []
    special: list[str] = []
    for entry in _entries(path):
        _choose(entry, names, subfolders, special).append(entry.name)
    for each in (names, subfolders, special):
        each.sort()
    return tuple(names), tuple(subfolders), tuple(special)


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise _listing_error(path, error) from None


def _listing_error(folder: Path, error: OSError) -> DatasetError:
    is_refused = error.errno in (errno.EACCES, errno.EPERM)
    hint = "check the folder's permissions" if is_refused else "check the disk, or the connection to its server"
    return DatasetError(f"{folder} cannot be listed: {error.strerror}", hint)


def _choose(entry: os.DirEntry[str], names: list[str], subfolders: list[str], special: list[str]) -> list[str]:
    """Return the list for an entry; a link that leads nowhere is a file, whose error is found when it is opened."""
    try:
        if entry.is_dir():
            return subfolders
        if entry.is_file():
            return names
        entry.stat()
    except OSError:
        return names
    return special


def find_name(folder: Path, name: str) -> str | None:
    """Return the name of a file in a folder, in the Unicode normalization form that exists; None if none does."""
    forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    return next((each for each in forms if is_file(folder / each)), None)


def is_file(path: Path) -> bool:
    """Return whether a path is a file; `Path.is_file` raises for a name that is too long."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; `Path.is_dir` raises for a name that is too long."""
    return os.path.isdir(path)  # noqa: PTH112


def read_text(path: AnyPath) -> str:
    """Read a UTF-8 text file, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path: AnyPath) -> list[str]:
    """Read the lines of a UTF-8 text file, without their ends.

    Characters other than line feeds and carriage returns that Unicode counts as line breaks are part of a label.
    """
    return read_text(path).removesuffix("\n").split("\n")


def display_path(folder: Path) -> str:
    """Return a folder's path with a closing slash."""
    return os.path.join(folder, "")  # noqa: PTH118 - pathlib drops the closing slash


def no_images_error(folder: Path, recursive: bool) -> DatasetError:
    """Return the error for a folder without images; its hint names the first subfolder that contains some."""
    if not recursive:
        for listing in walk(folder, recursive=True):
            if listing.images():
                return DatasetError(
                    f"{display_path(folder)} contains no images itself, but {display_path(listing.path)} does",
                    f"pass {display_path(listing.path)}, or pass --recursive",
                )
    return DatasetError(
        f"{display_path(folder)} contains no images", "image files end in jpg, png, webp, bmp, gif or tif"
    )
