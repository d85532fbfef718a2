"""The images of folders as compact names, in the order of their listing."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

_BLOCK_NAMES = 256


class NameList:
    """File names in the bytes of their letters and one more: blocks of names, separated by a zero byte."""

    def __init__(self, names: Sequence[str]) -> None:
        self._length = len(names)
        self._blocks = [_join(names[start : start + _BLOCK_NAMES]) for start in range(0, len(names), _BLOCK_NAMES)]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            yield from _split(block)

    def __getitem__(self, index: int) -> str:
        return _split(self._blocks[index // _BLOCK_NAMES])[index % _BLOCK_NAMES]


def _join(names: Sequence[str]) -> bytes:
    return "\0".join(names).encode("utf-8", "surrogatepass")


def _split(block: bytes) -> list[str]:
    return block.decode("utf-8", "surrogatepass").split("\0")


class ListedImages:
    """The ids of the images below a folder, `root`: their posix paths relative to it.

    `add_folder` adds the images of one folder, whose names share one copy of its path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: list[tuple[str, NameList]] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[str]:
        for prefix, names in self._folders:
            yield from (prefix + name for name in names) if prefix else names

    def __getitem__(self, index: int) -> str:
        folder = bisect_right(self._ends, index)
        prefix, names = self._folders[folder]
        return prefix + names[index - (self._ends[folder - 1] if folder else 0)]

    def add_folder(self, subpath: str, names: Sequence[str]) -> None:
        """Add the images of a folder; `subpath` is its posix path below the root, "" for the root itself."""
        if names:
            self._folders.append((f"{subpath}/" if subpath else "", NameList(names)))
            self._ends.append(len(self) + len(names))

    def path(self, image_id: str) -> Path:
        """Return the path of an image."""
        return self.root / image_id
