"""Image locators: functions that find the file that a row names, and never a file outside the row's folder."""
# ruff: noqa: PTH118 - pathlib costs too much where a million rows each name an image

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from florence2.data.folders.listing import display_path
from florence2.data.tables import Row
from florence2.errors import DatasetError

DATASET_DIR_HINT = "pass the folder of the images as --dataset_dir"
_DRIVE = re.compile(r"[A-Za-z]:/")


class LocatedImage(NamedTuple):
    """An image that a row names: its id, its path, and whether the file exists."""

    id: str
    path: Path
    exists: bool


# Arguments: the row, the image name in it, and the row's name for errors.
ImageLocator = Callable[[Row, str, str], LocatedImage]


def confine_to(root: Path, hint: str) -> Callable[[str, str], LocatedImage]:
    """Return a function that locates an image by its name inside `root`.

    A name without a file is matched as `FileMatcher` does. A name that leaves `root` through `..`, as an absolute path
    or through a link raises a DatasetError with `hint`.
    """
    plain_root, real_root = os.path.abspath(root), os.path.realpath(root)  # noqa: PTH100
    real_folder = cache(os.path.realpath)
    matcher = FileMatcher(plain_root)

    def locate(name: str, where: str) -> LocatedImage:
        if "\0" in name:
            raise DatasetError(f"{where}: `{name}` is not a file name", hint)
        plain = os.path.normpath(os.path.join(plain_root, name))
        mode = _file_mode(plain)
        if not mode:
            plain = os.path.normpath(os.path.join(plain_root, matcher.match(name, where)))
            mode = _file_mode(plain)
        folder, last = os.path.split(plain)
        real = os.path.realpath(plain) if stat.S_ISLNK(mode) else os.path.join(real_folder(folder), last)
        if not _is_inside(real, real_root):
            raise DatasetError(f"{where}: `{name}` is outside {display_path(root)}", hint)
        relative = plain[len(plain_root) :] if _is_inside(plain, plain_root) else real[len(real_root) :]
        relative = relative.lstrip(os.sep)
        return LocatedImage(Path(relative).as_posix(), root / relative, mode != 0)

    return locate


class FileMatcher:
    """Matches names that another machine or program wrote to the files of a folder.

    A backslash is read as `/`, `%20` as a space. Letters match in any case and in any Unicode normalization form, where
    one file alone matches. Of an absolute path its last parts match; two such paths never match one file.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._folders: dict[str, dict[str, list[str]]] = {}
        self._origins: dict[str, str] = {}

    def match(self, name: str, where: str) -> str:
        """Return the path of the file within the folder, or the name with slashes where no file matches."""
        plain = name.replace("\\", "/")
        for candidate in dict.fromkeys((plain, unquote(plain))):
            parts = [part for part in candidate.split("/") if part not in ("", ".")]
            is_absolute = candidate.startswith("/") or _DRIVE.match(candidate) is not None
            for start in range(len(parts) if is_absolute else 1):
                if found := self.find(parts[start:]):
                    return self._claimed(found, name, where) if is_absolute else found
        return plain

    def find(self, parts: Sequence[str]) -> str:
        """Return the path of the file or folder with these parts, in any letter case; "" where there is none."""
        path = self._root
        for part in parts:
            names = self._names(path).get(_fold(part), [])
            if part not in names and len(names) != 1:
                return ""
            path = os.path.join(path, part if part in names else names[0])
        return path if parts else ""

    def _names(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._folders:
            by_folded: dict[str, list[str]] = {}
            try:
                for each in os.listdir(folder):  # noqa: PTH208
                    by_folded.setdefault(_fold(each), []).append(each)
            except (OSError, ValueError):
                pass  # no folder, or a file
            self._folders[folder] = by_folded
        return self._folders[folder]

    def _claimed(self, path: str, name: str, where: str) -> str:
        origin = self._origins.setdefault(path, name)
        if origin != name:
            raise DatasetError(
                f"{where}: `{name}` and `{origin}` both match {path}", "write the names relative to the folder"
            )
        return path


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_inside(path: str, root: str) -> bool:
    return path.startswith(root.rstrip(os.sep) + os.sep)


def _file_mode(path: str) -> int:
    """Return the mode of a file or link, 0 if it does not exist."""
    try:
        return os.lstat(path).st_mode
    except (OSError, ValueError):
        return 0


def locate_inside(folder: Path, hint: str = DATASET_DIR_HINT, subpath: str = "") -> ImageLocator:
    """Return a locator for names that are relative to `subpath` of a folder."""
    confined = confine_to(folder, hint)
    return lambda _, name, where: confined(os.path.join(subpath, name), where)


def locate_beside(folder: Path, hint: str) -> ImageLocator:
    """Return a locator for a table's folder: first a row's `image_dir`, then the table's folder."""
    beside = confine_to(folder, hint)

    @cache
    def confined_to_image_dir(relative: str) -> Callable[[str, str], LocatedImage] | None:
        root = Path(os.path.normpath(folder.resolve() / relative))
        return confine_to(root, hint) if root.is_dir() else None

    def locate(row: Row, name: str, where: str) -> LocatedImage:
        relative = row.get("image_dir")
        if isinstance(relative, str) and relative and (confined := confined_to_image_dir(relative)):
            located = confined(name, where)
            if located.exists:
                return located
        return beside(name, where)

    return locate
