"""Patterns of shards: `data-{000..009}.tar`, `data-*.tar`, or a folder, local or in a store."""

import glob
import os
import re
from collections.abc import Iterator, Sequence

from florence2.data.stores.store_path import AnyPath, StorePath, is_address, list_matches, to_path

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_pattern(spec: str) -> list[AnyPath]:
    """List the files that a pattern names, in order; without braces and wildcards, the one path itself."""
    return [path for name in _expand_braces(spec) for path in _expand_wildcards(name)]


def has_pattern(spec: str) -> bool:
    """Return whether a name has braces or wildcards."""
    return next(_expand_braces(spec)) != spec or _has_wildcard(spec)


def _has_wildcard(name: str) -> bool:
    # `?` begins the query of an HTTP address
    return any(mark in name for mark in "*[") if is_address(name) else glob.has_magic(name)


def _expand_wildcards(name: str) -> Sequence[AnyPath]:
    path = to_path(name)
    if not _has_wildcard(name):
        return [path]
    if isinstance(path, StorePath):
        return list_matches(name)
    return [to_path(each) for each in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207


def _expand_braces(name: str) -> Iterator[str]:
    """Expand `{000..009}` and `{a,b}`."""
    if match := _RANGE.search(name):
        first, last = match.groups()
        parts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif match := re.search(r"\{([^{}]*,[^{}]*)\}", name):
        parts = match[1].split(",")
    else:
        yield name
        return
    for part in parts:
        yield from _expand_braces(name[: match.start()] + part + name[match.end() :])


def relative_names(paths: Sequence[AnyPath], root: AnyPath | None = None) -> list[str]:
    """Return the posix path of each file relative to `root`, or to the folder that all are in."""
    folders = [_without_scheme(path.parent) for path in paths]
    top = os.path.commonpath(set(folders)) if root is None else _without_scheme(root)
    below = [folder[len(top) :].replace(os.sep, "/").strip("/") for folder in folders]
    return [f"{folder}/{path.name}" if folder else path.name for folder, path in zip(below, paths, strict=True)]


def _without_scheme(path: AnyPath) -> str:
    return path.address.partition("://")[2].strip("/") if isinstance(path, StorePath) else str(path)


def common_folder(paths: Sequence[AnyPath]) -> AnyPath:
    """Return the folder that all files are in."""
    folder = paths[0].parent
    for _ in range(relative_names(paths)[0].count("/")):
        folder = folder.parent
    return folder
