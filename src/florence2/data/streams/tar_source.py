"""Tar shards as webdataset has them: files with one name up to the first dot are one record, an image and its rows.

    0001.jpg  0001.txt            the caption
    0001.jpg  0001.json           a row of the common JSONL without `file_name`, or a list of such rows

The files of a record may be anywhere in the tar. A tar is read in place: one pass finds the position of each image,
which is read from there when it is opened. Nothing is unpacked. Compressed tars have no random access and are rejected.
"""

import glob
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.folders.foreign_jsonl import translate_rows
from florence2.data.folders.image_names import is_image_name
from florence2.data.sample import Sample
from florence2.data.tables import Row
from florence2.errors import DatasetError
from florence2.files import to_json

PER_SHARD = 1000  # images in each tar that is written
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CAPTION_EXTENSIONS = (".txt", ".caption")


@dataclass(frozen=True, slots=True)
class TarImage:
    """The position of an image file within a tar; a call returns its bytes."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        """Read the bytes."""
        with self.path.open("rb") as tar:
            tar.seek(self.offset)
            return tar.read(self.size)


class TarRecord(NamedTuple):
    """One record of a tar: the image's file name, its position, and its rows.

    `ignored` names, on the first record, what the tar has besides records with an image.
    """

    name: str
    image: TarImage
    rows: list[Row]
    ignored: Sequence[str] = ()


@dataclass(frozen=True)
class TarSource:
    """A list of tars."""

    name: str
    paths: tuple[Path, ...]
    root: None = None

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]:
        """Read the rows of all tars with their images; a row without a task has `columns.task`."""
        has_several = len(self.paths) > 1
        for path in self.paths:
            yield from tar_rows(path, columns, f"{path.name}/" if has_several else "")


def tar_rows(path: Path, columns: ColumnMapping, prefix: str) -> Iterator[DatasetRow]:
    """Read the rows of a tar with their images, whose ids begin with `prefix`."""

    def rows() -> Iterator[DatasetRow]:
        for record in read_tar(path):
            image = Sample(prefix + record.name, record.image, "")
            ignored = record.ignored
            for row in record.rows:
                named_row = {**row, "file_name": image.id}
                yield DatasetRow(f"{path}: {record.name}", named_row, image, ignored_shapes=ignored)
                ignored = ()

    return translate_rows(rows(), columns)


def find_shards(spec: str) -> TarSource | None:
    """Find tars: one file, a pattern like `data-{000..009}.tar` or `data-*.tar`, or a folder of tars."""
    path = Path(spec).expanduser()
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        return TarSource(spec, tuple(tars)) if tars else None
    if re.search(r"\.(tar\.\w+|tgz)$", spec):
        raise DatasetError(f"{spec} is compressed, so its images cannot be read one by one", "decompress it to a .tar")
    if not spec.endswith(".tar"):
        return None
    names = list(_expand_braces(str(path)))
    paths = [Path(each) for name in names for each in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]  # noqa: PTH207
    absent = [each for each in paths if not each.is_file()]
    if absent or not paths:
        raise DatasetError(f"{absent[0] if absent else spec} does not exist", "check the pattern, and put it in quotes")
    return TarSource(spec, tuple(paths))


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


def read_tar(path: Path) -> Iterator[TarRecord]:
    """Read the records of a tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            records: dict[str, dict[str, tarfile.TarInfo]] = {}
            for member in tar:
                key, extension = _split_name(member.name)
                if member.isfile() and extension and not Path(key).name.startswith("."):
                    records.setdefault(key, {})[extension] = member
            rowless = [members for members in records.values() if not _image_extensions(members)]
            targets = {*_CAPTION_EXTENSIONS, ".json"}
            ignored = ["target without an image" for members in rowless if targets & members.keys()]
            for key, members in records.items():
                for record in _read_record(path, tar, key, members):
                    yield record._replace(ignored=ignored)
                    ignored = []
    except (tarfile.TarError, OSError) as error:
        message = getattr(error, "strerror", None) or str(error) or "it is truncated"
        raise DatasetError(f"{path} is not a tar that can be read: {message}") from None


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, dot, extension = last.partition(".")
    return folder + slash + stem, f"{dot}{extension}".lower()


def _image_extensions(members: Iterable[str]) -> list[str]:
    return [extension for extension in members if is_image_name(f"a{extension}")]


def _read_record(
    path: Path, tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]
) -> Iterator[TarRecord]:
    images = _image_extensions(members)
    if not images:
        return
    image = min(images, key=lambda extension: extension.count("."))  # `.jpg` rather than a mask in `.seg.png`
    rows: list[Row] = [{}]
    if ".json" in members:
        rows = _parse_rows(_read_text(path, tar, members[".json"]), f"{path}: {key}.json")
    caption = next((members[extension] for extension in _CAPTION_EXTENSIONS if extension in members), None)
    if caption is not None and not any(row.get("text") or row.get("answer") for row in rows):
        rows = [{**row, "text": " ".join(_read_text(path, tar, caption).split())} for row in rows]
    member = members[image]
    yield TarRecord(key + image, TarImage(path, member.offset_data, member.size), rows)


def _read_text(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    stored = tar.extractfile(member)  # returns a reader of the tar and writes nothing
    try:
        return stored.read().decode("utf-8-sig") if stored else ""
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: {member.name} is not UTF-8 text") from None


def _parse_rows(text: str, where: str) -> list[Row]:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{where} is not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{where} is neither a row nor a list of rows")
    return rows


def write_shards(folder: Path, images: Iterable[tuple[str, bytes, list[Row]]], per_shard: int = PER_SHARD) -> int:
    """Write tars `000000.tar`, ... of (file name, encoded image, rows); return the number of tars.

    Record names are numbers, because a dot or a folder in a file name could split a record.
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
            _add_file(tar, f"{number:08d}{Path(name).suffix.lower()}", encoded)
            content: Any = rows[0] if len(rows) == 1 else rows
            _add_file(tar, f"{number:08d}.json", to_json(content).encode())
    finally:
        if tar:
            tar.close()
    return number // per_shard + 1


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
