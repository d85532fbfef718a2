"""Folders of pictures, and the words that lie beside them.

A sidecar belongs to the picture with the same stem in the same folder: `a.jpg` and `a.txt`. Its whole text is the
caption; line breaks become spaces, unless the caller wants the lines. Names that start with a dot are left alone.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from florence2.data.image import is_image_name
from florence2.data.sample import ResolvedDataset, Sample, Skipped, SkipReason
from florence2.errors import UserError
from florence2.model.tasks import InputType, split_prompt


@dataclass(frozen=True)
class Listing:
    """The files of one folder, in order of their names. `under` is its posix path within the source, "" at the top."""

    path: Path
    subpath: str
    names: tuple[str, ...]

    def id(self, name: str) -> str:
        """Give a file's posix path relative to the source."""
        return f"{self.subpath}/{name}" if self.subpath else name

    def images(self) -> list[str]:
        """Give the names that are pictures."""
        return [name for name in self.names if is_image_name(name)]


@dataclass(frozen=True)
class Sidecars:
    """Where a picture's caption may lie: extensions in order of preference, and what follows the stem before them."""

    extensions: tuple[str, ...] = (".txt", ".caption")
    suffix: str = ""
    keep_lines: bool = False

    @classmethod
    def of(cls, extension: str, keep_lines: bool = False) -> "Sidecars":
        """Look for `extension` first and for `.caption` next; `_old.txt` means `a_old.txt` beside `a.jpg`."""
        behind, _, last = extension.rpartition(".")
        return cls(tuple(dict.fromkeys([f".{last.lower()}", ".caption"])), behind, keep_lines)

    def of_folder(self, listing: Listing) -> dict[str, str]:
        """Map the stem of each sidecar in a folder to its name."""
        found: dict[str, str] = {}
        for wanted in self.extensions:
            for name in listing.names:
                stem, _, extension = name.rpartition(".")
                if f".{extension.lower()}" == wanted and stem.endswith(self.suffix):
                    found.setdefault(stem[: len(stem) - len(self.suffix)], name)
        return found

    def read(self, path: Path) -> str:
        """Read a caption."""
        lines = [line.strip() for line in read_text(path).splitlines()]
        return ("\n" if self.keep_lines else " ").join(line for line in lines if line)


def walk(folder: Path, recursive: bool) -> Iterator[Listing]:
    """List a folder, and with `recursive` the folders below it, each after the one that holds it."""
    above: list[tuple[Path, str, tuple[tuple[int, int], ...]]] = [(folder, "", ())]
    while above:
        path, under, ancestors = above.pop()
        names, folders = _scan(path)
        yield Listing(path, under, tuple(names))
        if not recursive:
            return
        here = path.stat()
        if (here.st_dev, here.st_ino) in ancestors:
            continue  # a link that leads back up
        lineage = (*ancestors, (here.st_dev, here.st_ino))
        above += [(path / name, f"{under}/{name}" if under else name, lineage) for name in reversed(folders)]


def _scan(path: Path) -> tuple[list[str], list[str]]:
    names: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else names).append(entry.name)
    except OSError as error:
        raise UserError(f"{path} cannot be listed: {error.strerror}", "check the folder's permissions") from None
    return sorted(names), sorted(folders)


def read_text(path: Path) -> str:
    """Read a UTF-8 text, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def folder_images(folder: Path, *, task: str, input: str = "", recursive: bool = False) -> ResolvedDataset:  # noqa: A002
    """Ask the same about every picture of a folder."""
    samples = [
        Sample(listing.id(name), listing.path / name, task, input)
        for listing in walk(folder, recursive)
        for name in listing.images()
    ]
    if not samples:
        raise no_images_error(folder, recursive)
    return ResolvedDataset(display_path(folder), folder, samples)


def captioned_images(
    listings: Sequence[Listing], *, task: str, sidecars: Sidecars, known: Collection[str] = ()
) -> tuple[list[Sample], list[Skipped]]:
    """Pair the pictures of listed folders with their sidecars, but for those whose ids are `known` already."""
    asked, said = split_prompt(task)
    if asked.input_type is not InputType.NOTHING and not said:
        raise UserError(
            f"the task `{asked.name}` needs {asked.input_type} for each picture, which a sidecar cannot hold",
            'list the pictures in a JSONL, with "task", "input" and "text"',
        )
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for listing in listings:
        words = sidecars.of_folder(listing)
        for name in (name for name in listing.images() if listing.id(name) not in known):
            stem = name.rpartition(".")[0]
            caption = sidecars.read(listing.path / words[stem]) if stem in words else ""
            if caption:
                samples.append(Sample(listing.id(name), listing.path / name, asked.token, said, caption))
            else:
                sidecar = listing.path / words.get(stem, stem + sidecars.suffix + sidecars.extensions[0])
                skipped.append(
                    Skipped(listing.id(name), SkipReason.NO_CAPTION, str(listing.path / name), f"write {sidecar}")
                )
    return samples, skipped


def display_path(folder: Path) -> str:
    """Name a folder so that it is seen to be one."""
    return os.path.join(folder, "")  # noqa: PTH118 - pathlib drops the closing slash


def no_images_error(folder: Path, recursive: bool) -> UserError:
    """Say that a folder holds no pictures, and where there are some."""
    if not recursive:
        for listing in walk(folder, recursive=True):
            if listing.images():
                return UserError(
                    f"{display_path(folder)} holds no pictures itself, but {display_path(listing.path)} does",
                    f"name {display_path(listing.path)}, or pass --recursive",
                )
    return UserError(f"{display_path(folder)} holds no pictures", "jpg, png, webp, bmp, gif and tif files are pictures")
