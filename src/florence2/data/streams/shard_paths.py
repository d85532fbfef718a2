"""Patterns of shards: `data-{000..009}.tar`, `data-*.tar`, or a folder, local or in a store."""

import glob
import os
import re
from collections.abc import Iterator, Sequence

from florence2.data.stores.store_path import AnyPath, StorePath, is_address, list_matches, to_path

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?\d+))?")


def expand_pattern(spec: str) -> list[AnyPath]:
    """List the files that a pattern names, each once and in order; without braces and wildcards, the path itself."""
    return list(dict.fromkeys(path for name in _expand_braces(spec) for path in _expand_wildcards(name)))


def has_pattern(spec: str) -> bool:
    """Return whether a name has braces or wildcards."""
    return next(_expand_braces(spec)) != spec or _has_wildcard(spec)


def _has_wildcard(name: str) -> bool:
    marks = "*[" if name.startswith(("http://", "https://")) else "*?["  # `?` begins the query of an HTTP address
    return any(mark in name for mark in marks) if is_address(name) else glob.has_magic(name)


def _expand_wildcards(name: str) -> Sequence[AnyPath]:
    path = to_path(name)
    if not _has_wildcard(name):
        return [path]
    if isinstance(path, StorePath):
        return list_matches(name)
    return [to_path(each) for each in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207


def _expand_braces(name: str) -> Iterator[str]:
    """Expand `{000..009}`, `{0..8..2}`, `{a..e}` and `{a,b}`, nested ones too, as a shell does."""
    start = name.find("{")
    while start >= 0:
        parts, end = _split_braces(name, start)
        choices = _choices(parts)
        if choices:
            rests = list(_expand_braces(name[end:]))
            yield from (name[:start] + choice + rest for choice in choices for rest in rests)
            return
        start = name.find("{", start + 1)
    yield name


def _split_braces(name: str, start: int) -> tuple[list[str], int]:
    """Split what is between the brace at `start` and its counterpart at commas; return the end of the latter, too."""
    depth, parts, begin = 0, list[str](), start + 1
    for index in range(start, len(name)):
        mark = name[index]
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if (mark == "," and depth == 1) or (mark == "}" and depth == 0):
            parts.append(name[begin:index])
            begin = index + 1
        if depth == 0:
            return parts, index + 1
    return [], len(name)


def _choices(parts: Sequence[str]) -> list[str]:
    """Return what a pair of braces stands for; nothing where it stands for itself, as `{}` and `{name}` do."""
    if len(parts) > 1:
        return [each for part in parts for each in _expand_braces(part)]
    match = _RANGE.fullmatch(parts[0]) if parts else None
    if match is None:
        return []
    first, last = (match[1], match[2]) if match[1] else (match[4], match[5])
    start, end = (int(first), int(last)) if match[1] else (ord(first), ord(last))
    step = abs(int(match[3] or match[6] or 1)) or 1
    numbers = range(start, end + 1, step) if start <= end else range(start, end - 1, -step)
    if not match[1]:
        return [chr(number) for number in numbers]
    is_padded = any(each.lstrip("-").startswith("0") and len(each.lstrip("-")) > 1 for each in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    return [str(number).zfill(width) for number in numbers]


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
