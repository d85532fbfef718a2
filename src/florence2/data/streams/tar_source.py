"""Tar shards as webdataset has them: files with one name up to the first dot are one record, an image and its rows.

    0001.jpg  0001.txt            the caption
    0001.jpg  0001.json           a row of the common JSONL without `file_name`, or a list of such rows

The files of a record may be anywhere in a local tar. It is read in place: one pass finds the position of each image,
which is read from there when it is opened. A tar in a store is read once from its start to its end, with the images in
memory; there the files of a record must be adjacent. Nothing is unpacked. Compressed tars are rejected.
"""

import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.folders.foreign_jsonl import translate_rows
from florence2.data.folders.image_names import is_image_name
from florence2.data.sample import Sample
from florence2.data.stores.store_path import AnyPath, StorePath
from florence2.data.streams.shard_paths import expand_pattern, has_pattern, relative_names
from florence2.data.tables import Row
from florence2.errors import DatasetError
from florence2.files import parse_json
from florence2.log import logger

_CAPTION_EXTENSIONS = (".txt", ".caption")
_TARGET_EXTENSIONS = frozenset({*_CAPTION_EXTENSIONS, ".json"})


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
    """One record of a tar: the image's file name, its position (or, from a store, its bytes), and its rows.

    `ignored` names, on the first record, what the tar has besides records with an image. `error` says why the rows
    cannot be read.
    """

    name: str
    image: TarImage | bytes
    rows: list[Row]
    ignored: Sequence[str] = ()
    error: DatasetError | None = None


@dataclass(frozen=True)
class TarSource:
    """A list of tars."""

    name: str
    paths: tuple[AnyPath, ...]
    root: None = None

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]:
        """Read the rows of all tars with their images; a row without a task has `columns.task`."""
        has_several = len(self.paths) > 1
        for path, name in zip(self.paths, relative_names(self.paths), strict=True):
            yield from tar_rows(path, columns, f"{name}/" if has_several else "")


def tar_rows(path: AnyPath, columns: ColumnMapping, prefix: str) -> Iterator[DatasetRow]:
    """Read the rows of a tar with their images, whose ids begin with `prefix`."""

    def rows() -> Iterator[DatasetRow]:
        for record in read_tar(path):
            image = Sample(prefix + record.name, record.image, "")
            ignored = record.ignored
            for row in record.rows if record.error is None else [{}]:
                named_row = {**row, "file_name": image.id}
                where = f"{path}: {record.name}"
                yield DatasetRow(where, named_row, image, ignored_shapes=ignored, error=record.error)
                ignored = ()

    return translate_rows(rows(), columns)


def find_shards(spec: str) -> TarSource | None:
    """Find tars: one file, a pattern like `data-{000..009}.tar` or `data-*.tar`, or a folder of tars."""
    path = Path(spec).expanduser()
    if path.is_dir():
        tars = sorted(path.glob("*.tar"))
        return TarSource(spec, tuple(tars)) if tars else None
    reject_compressed(spec)
    if not spec.endswith(".tar"):
        return None
    paths = expand_pattern(spec)
    absent = [each for each in paths if isinstance(each, Path) and not each.is_file()]
    if absent or not paths:
        hint = "check the pattern, and put it in quotes" if has_pattern(spec) else "check the path"
        raise DatasetError(f"{absent[0] if absent else spec} does not exist", hint)
    return TarSource(spec, tuple(paths))


def reject_compressed(name: str) -> None:
    """Raise a DatasetError for the name of a compressed tar."""
    if re.search(r"\.(tar\.\w+|tgz)$", name):
        raise DatasetError(f"{name} is compressed, so its images cannot be read one by one", "decompress it to a .tar")


def read_tar(path: AnyPath) -> Iterator[TarRecord]:
    """Read the records of a tar."""
    try:
        yield from _read_streamed(path) if isinstance(path, StorePath) else _read_in_place(path)
    except (tarfile.TarError, OSError) as error:
        message = getattr(error, "strerror", None) or str(error) or "it is truncated"
        raise DatasetError(f"{path} is not a tar that can be read: {message}") from None


def _read_in_place(path: Path) -> Iterator[TarRecord]:
    """Read all headers, then the records, whose images stay in the file."""
    with tarfile.open(path, "r:") as tar:
        records: dict[str, dict[str, tarfile.TarInfo]] = {}
        num_repeated = 0
        for member in tar:
            key, extension = _split_name(member.name)
            if _is_record_file(member, key, extension):
                members = records.setdefault(key, {})
                num_repeated += extension in members
                members[extension] = member  # of files with one name, the last is valid
        ignored = ["target without an image" for members in records.values() if _is_target_alone(members)]
        ignored += ["earlier file with the same name"] * num_repeated
        for key, members in records.items():
            positions = {extension: TarImage(path, each.offset_data, each.size) for extension, each in members.items()}
            read = partial(_read_member, tar, members)
            for record in _read_record(path, key, positions, read):
                yield record._replace(ignored=ignored)
                ignored = []


def _read_streamed(path: StorePath) -> Iterator[TarRecord]:
    """Read the files one after another; the bytes of one record are in memory."""
    keys: set[str] = set()
    pending: dict[str, bytes] = {}
    current, ignored = "", list[str]()
    with path.open() as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            key, extension = _split_name(member.name)
            if not _is_record_file(member, key, extension):
                continue
            if key != current:
                for record in _read_record(path, current, pending, pending.__getitem__):
                    yield record._replace(ignored=ignored)
                    ignored = []
                ignored += ["target without an image"] * _is_target_alone(pending)
                if key in keys:
                    raise DatasetError(
                        f"{path}: the files of {key} are not adjacent", "write the tar again with its names sorted"
                    )
                keys.add(key)
                current, pending = key, {}
            if extension in _TARGET_EXTENSIONS or _image_extensions([extension]):
                ignored += ["earlier file with the same name"] * (extension in pending)
                pending[extension] = _read_member(tar, {extension: member}, extension)
    yield from (
        record._replace(ignored=ignored) for record in _read_record(path, current, pending, pending.__getitem__)
    )
    if _is_target_alone(pending):
        logger.warning(f"{path}: {current} is a target without an image")


def _is_record_file(member: tarfile.TarInfo, key: str, extension: str) -> bool:
    return member.isfile() and bool(extension) and not Path(key).name.startswith(".")


def _is_target_alone(extensions: Iterable[str]) -> bool:
    return not _image_extensions(extensions) and not _TARGET_EXTENSIONS.isdisjoint(extensions)


def _read_member(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], extension: str) -> bytes:
    stored = tar.extractfile(members[extension])  # returns a reader of the tar and writes nothing
    return stored.read() if stored else b""


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, dot, extension = last.partition(".")
    return folder + slash + stem, f"{dot}{extension}".lower()


def _image_extensions(members: Iterable[str]) -> list[str]:
    return [extension for extension in members if is_image_name(f"a{extension}")]


def _read_record(
    path: AnyPath, key: str, files: Mapping[str, TarImage | bytes], read: Callable[[str], bytes]
) -> Iterator[TarRecord]:
    """Read a record of files by extension; `read` returns the content of one."""
    images = _image_extensions(files)
    if not images:
        return
    image = min(images, key=lambda extension: extension.count("."))  # `.jpg` rather than a mask in `.seg.png`
    try:
        yield TarRecord(key + image, files[image], _record_rows(path, key, files, read))
    except DatasetError as error:
        yield TarRecord(key + image, files[image], [], error=error)


def _record_rows(path: AnyPath, key: str, files: Iterable[str], read: Callable[[str], bytes]) -> list[Row]:
    rows: list[Row] = [{}]
    if ".json" in files:
        rows = _parse_rows(_decode_text(path, key, ".json", read), f"{path}: {key}.json")
    caption = next((extension for extension in _CAPTION_EXTENSIONS if extension in files), None)
    if caption is not None and not any(row.get("text") or row.get("answer") for row in rows):
        text = " ".join(_decode_text(path, key, caption, read).split())
        rows = [{**row, "text": text} for row in rows]
    return rows


def _decode_text(path: AnyPath, key: str, extension: str, read: Callable[[str], bytes]) -> str:
    try:
        return read(extension).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: {key}{extension} is not UTF-8 text") from None


def _parse_rows(text: str, where: str) -> list[Row]:
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where} is not JSON: {error.msg}") from None
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{where} is neither a row nor a list of rows")
    return rows
