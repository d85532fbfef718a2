"""Tars as webdataset has them: files of one name up to its first dot belong together, a picture and its words.

    0001.jpg  0001.txt            the caption
    0001.jpg  0001.json           a row of the one JSONL, without `file_name`; or a list of such rows

A tar is read in place: one pass finds where each picture lies, and it is read from there when it is opened. Nothing is
unpacked. Compressed tars cannot be read in the middle and are refused.
"""

import glob
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from florence2.data.columns import ColumnMapping
from florence2.data.formats.annotations import DatasetRow
from florence2.data.image import is_image_name
from florence2.data.sample import Sample
from florence2.data.tables import Row
from florence2.errors import UserError

PER_SHARD = 1000  # pictures in a tar that is written
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WORDS = (".txt", ".caption")


@dataclass(frozen=True, slots=True)
class TarImage:
    """Where a file lies within a tar; called, it gives the bytes."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        """Read the bytes."""
        with self.path.open("rb") as tar:
            tar.seek(self.offset)
            return tar.read(self.size)


class TarRecord(NamedTuple):
    """What lies under one name: the picture's file name, where it is, and the rows about it."""

    name: str
    image: TarImage
    rows: list[Row]


@dataclass(frozen=True)
class TarSource:
    """Tars, in order."""

    name: str
    paths: tuple[Path, ...]
    root: None = None

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]:
        """Give the rows of all tars, each with its picture; a row that names no task is asked `columns.task`."""
        del columns
        many = len(self.paths) > 1
        for path in self.paths:
            for told in read_tar(path):
                image = Sample(f"{path.name}/{told.name}" if many else told.name, told.image, "")
                for row in told.rows:
                    yield DatasetRow(f"{path}: {told.name}", {**row, "file_name": image.id}, image)


def find_shards(spec: str) -> TarSource | None:
    """Find the tars that are named: one, a pattern like `data-{000..009}.tar` or `data-*.tar`, or a folder of tars."""
    path = Path(spec).expanduser()
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        return TarSource(spec, tuple(tars)) if tars else None
    if re.search(r"\.(tar\.\w+|tgz)$", spec):
        raise UserError(f"{spec} is compressed, so its pictures cannot be read one by one", "unpack it to a .tar")
    if not spec.endswith(".tar"):
        return None
    names = list(_expanded(str(path)))
    found = [Path(each) for name in names for each in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]  # noqa: PTH207
    absent = [each for each in found if not each.is_file()]
    if absent or not found:
        raise UserError(f"{absent[0] if absent else spec} does not exist", "check the pattern, and put it in quotes")
    return TarSource(spec, tuple(found))


def _expanded(name: str) -> Iterator[str]:
    """Write out `{000..009}`, and `{a,b}`."""
    if match := _RANGE.search(name):
        first, last = match.groups()
        parts = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif match := re.search(r"\{([^{}]*,[^{}]*)\}", name):
        parts = match[1].split(",")
    else:
        yield name
        return
    for part in parts:
        yield from _expanded(name[: match.start()] + part + name[match.end() :])


def read_tar(path: Path) -> Iterator[TarRecord]:
    """Read what a tar holds, name by name."""
    try:
        with tarfile.open(path, "r:") as tar:
            group: dict[str, tarfile.TarInfo] = {}
            last = ""
            for member in tar:
                key, extension = _split(member.name)
                if not member.isfile() or not extension or Path(key).name.startswith("."):
                    continue
                if key != last and group:
                    yield from _told(path, tar, last, group)
                    group = {}
                last = key
                group[extension] = member
            yield from _told(path, tar, last, group)
    except (tarfile.TarError, OSError) as error:
        said = getattr(error, "strerror", None) or str(error) or "it is cut short"
        raise UserError(f"{path} is not a tar that can be read: {said}") from None


def _split(name: str) -> tuple[str, str]:
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, dot, extension = last.partition(".")
    return folder + slash + stem, f"{dot}{extension}".lower()


def _told(path: Path, tar: tarfile.TarFile, key: str, group: dict[str, tarfile.TarInfo]) -> Iterator[TarRecord]:
    images = [extension for extension in group if is_image_name(f"a{extension}")]
    if not images:
        return
    image = min(images, key=lambda extension: extension.count("."))  # `.jpg` before a mask in `.seg.png`
    rows: list[Row] = [{}]
    if ".json" in group:
        rows = _rows(_text(path, tar, group[".json"]), f"{path}: {key}.json")
    words = next((group[extension] for extension in _WORDS if extension in group), None)
    if words is not None and not any(row.get("text") or row.get("answer") for row in rows):
        rows = [{**row, "text": " ".join(_text(path, tar, words).split())} for row in rows]
    member = group[image]
    yield TarRecord(key + image, TarImage(path, member.offset_data, member.size), rows)


def _text(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    stored = tar.extractfile(member)  # a reader of the tar; nothing is written
    try:
        return stored.read().decode("utf-8-sig") if stored else ""
    except UnicodeDecodeError:
        raise UserError(f"{path}: {member.name} is not UTF-8 text") from None


def _rows(text: str, where: str) -> list[Row]:
    try:
        told = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None
    rows = told if isinstance(told, list) else [told]
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{where} is neither a row nor a list of rows")
    return rows


def write_shards(folder: Path, images: Iterable[tuple[str, bytes, list[Row]]], per_shard: int = PER_SHARD) -> int:
    """Write tars `000000.tar`, ... of (file name, encoded picture, rows); return how many.

    Names within the tars are numbers, so that no dot and no folder of a file's name can part what belongs together.
    """
    number = -1
    tar: tarfile.TarFile | None = None
    try:
        for number, (name, encoded, rows) in enumerate(images):
            if number % per_shard == 0:
                if tar:
                    tar.close()
                tar = tarfile.open(folder / f"{number // per_shard:06d}.tar", "w")  # noqa: SIM115
            assert tar is not None
            _add(tar, f"{number:08d}{Path(name).suffix.lower()}", encoded)
            said: Any = rows[0] if len(rows) == 1 else rows
            _add(tar, f"{number:08d}.json", json.dumps(said, ensure_ascii=False).encode())
    finally:
        if tar:
            tar.close()
    return number // per_shard + 1


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
