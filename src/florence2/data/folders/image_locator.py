"""Image locators: functions that find the file that a row names, and never a file outside the row's folder."""
# ruff: noqa: PTH118 - pathlib costs too much where a million rows each name an image

import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from florence2.data.folders.listing import display_path, find_name
from florence2.data.tables import Row
from florence2.errors import DatasetError

DATASET_DIR_HINT = "pass the folder of the images as --dataset_dir"


class LocatedImage(NamedTuple):
    """An image that a row names: its id, its path, and whether the file exists."""

    id: str
    path: Path
    exists: bool


# Arguments: the row, the image name in it, and the row's name for errors.
ImageLocator = Callable[[Row, str, str], LocatedImage]


def confine_to(root: Path, hint: str) -> Callable[[str, str], LocatedImage]:
    """Return a function that locates an image by its name inside `root`.

    A name that leaves `root` through `..`, as an absolute path or through a link raises a DatasetError with `hint`.
    """
    plain_root, real_root = os.path.abspath(root), os.path.realpath(root)  # noqa: PTH100
    real_folder = cache(os.path.realpath)

    def locate(name: str, where: str) -> LocatedImage:
        if os.sep == "/" and "\\" in name and not _file_mode(os.path.join(plain_root, name)):
            name = name.replace("\\", "/")
        plain = os.path.normpath(os.path.join(plain_root, name))
        mode = _file_mode(plain)
        if not mode and not name.isascii() and (existing := find_name(Path(plain_root), name)):
            plain = os.path.normpath(os.path.join(plain_root, existing))
            mode = _file_mode(plain)
        folder, last = os.path.split(plain)
        real = os.path.realpath(plain) if stat.S_ISLNK(mode) else os.path.join(real_folder(folder), last)
        if not _is_inside(real, real_root) or "\0" in name:
            raise DatasetError(f"{where}: `{name}` is outside {display_path(root)}", hint)
        relative = plain[len(plain_root) :] if _is_inside(plain, plain_root) else real[len(real_root) :]
        relative = relative.lstrip(os.sep)
        return LocatedImage(Path(relative).as_posix(), root / relative, mode != 0)

    return locate


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


def locate_beside(folder: Path) -> ImageLocator:
    """Return a locator for a table's folder: first a row's `image_dir`, then the table's folder."""
    beside = confine_to(folder, DATASET_DIR_HINT)

    @cache
    def confined_to_image_dir(relative: str) -> Callable[[str, str], LocatedImage] | None:
        root = Path(os.path.normpath(folder.resolve() / relative))
        return confine_to(root, DATASET_DIR_HINT) if root.is_dir() else None

    def locate(row: Row, name: str, where: str) -> LocatedImage:
        relative = row.get("image_dir")
        if isinstance(relative, str) and relative and (confined := confined_to_image_dir(relative)):
            located = confined(name, where)
            if located.exists:
                return located
        return beside(name, where)

    return locate
