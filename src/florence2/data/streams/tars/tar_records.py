"""The records of a tar as webdataset has them: files with one name up to the first dot, an image and its rows.

    0001.jpg  0001.txt            the caption
    0001.jpg  0001.json           a row of the common JSONL without `file_name`, or a list of such rows
    a.1.jpg  a.2.jpg  a.2.txt     two records: without `a.jpg`, each image has a name up to the last dot

The files of a record may be anywhere in a local tar. It is read in place: one pass finds the position of each image,
which is read from there when it is opened. A tar in a store is read once from its start to its end, with the images in
memory; there the files of a record must be adjacent. Nothing is unpacked.
"""

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from florence2.data.folders.image_names import is_image_name
from florence2.data.stores.store_path import AnyPath, StorePath
from florence2.data.tables import Row
from florence2.errors import DatasetError
from florence2.files import parse_json
from florence2.log import count_kinds

MAX_IMAGES = 64  # with one name up to the first dot, in memory
_CAPTION_EXTENSIONS = (".txt", ".caption")
_ROW_EXTENSION = ".json"


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

    `ignored` names the kinds of what was not read since the record before, on the last record of all that follows.
    `error` says why the rows cannot be read.
    """

    name: str
    image: TarImage | bytes
    rows: list[Row]
    ignored: Sequence[str] = ()
    error: DatasetError | None = None


def read_tar(path: AnyPath, *, has_targets: bool = True) -> Iterator[TarRecord]:
    """Read the records of a tar; without targets, captions are not read, and may be apart from their images."""
    ignored: list[str] = []
    last: TarRecord | None = None
    try:
        for record in _read(path, has_targets, ignored):
            if last is not None:
                yield last._replace(ignored=tuple(ignored))
                ignored.clear()
            last = record
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist", "check the path") from None
    except (tarfile.TarError, OSError) as error:
        message = getattr(error, "strerror", None) or str(error) or "it is truncated"
        raise DatasetError(f"{path} is not a tar that can be read: {message}", "write it again") from None
    if last is not None:
        yield last._replace(ignored=tuple(ignored))
    elif ignored:
        raise DatasetError(f"{path} contains no image; not read: {count_kinds(ignored)}", "check the tar")


def _read(path: AnyPath, has_targets: bool, ignored: list[str]) -> Iterator[TarRecord]:
    if isinstance(path, StorePath):
        return _read_streamed(path, has_targets, ignored)
    return _read_in_place(path, has_targets, ignored)


def _read_in_place(path: Path, has_targets: bool, ignored: list[str]) -> Iterator[TarRecord]:
    """Read all headers, then the records, whose images stay in the file."""
    with tarfile.open(path, "r:") as tar:
        records: dict[str, dict[str, tarfile.TarInfo]] = {}
        for member in tar:
            key, extension = _split_name(member.name)
            if _is_read(member, extension, has_targets, ignored):
                members = records.setdefault(key, {})
                ignored += ["earlier file with the same name"] * (extension in members)
                members[extension] = member  # of files with one name, the last is valid
        for key, members in records.items():
            positions = {extension: TarImage(path, each.offset_data, each.size) for extension, each in members.items()}
            yield from _read_records(path, key, positions, partial(_read_member, tar, members), ignored)


def _read_streamed(path: StorePath, has_targets: bool, ignored: list[str]) -> Iterator[TarRecord]:
    """Read the files one after another; the bytes of one record are in memory."""
    finished: set[str] = set()
    files: dict[str, bytes] = {}
    current, is_split = "", False
    with path.open() as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            key, extension = _split_name(member.name)
            if not _is_read(member, extension, has_targets, ignored):
                continue
            if key != current:
                yield from _read_records(path, current, files, files.__getitem__, ignored, is_split)
                if has_targets or _image_extensions(files):
                    finished.add(current)
                if has_targets and key in finished:
                    raise DatasetError(
                        f"{path}: the files of {key} are not adjacent", "write the tar again with its names sorted"
                    )
                current, files, is_split = key, {}, False
            if key in finished:
                ignored.append("file apart from its record")
                continue
            if _image_extensions([extension]) and len(_image_extensions(files)) == MAX_IMAGES:
                is_split, others = True, [each for each in files if _stem(each) != _stem(extension)]
                complete = {each: files[each] for each in others}
                yield from _read_records(path, key, complete, complete.__getitem__, ignored, is_split)
                for each in others:
                    if _stem(each) or _image_extensions([each]):
                        del files[each]
            ignored += ["earlier file with the same name"] * (extension in files)
            files[extension] = _read_member(tar, {extension: member}, extension)
    yield from _read_records(path, current, files, files.__getitem__, ignored, is_split)


def _is_read(member: tarfile.TarInfo, extension: str, has_targets: bool, ignored: list[str]) -> bool:
    """Return whether a file is an image or a target, and add the kind of every other one that is not hidden."""
    name = PurePosixPath(member.name)
    if member.isdir() or name.name.startswith(".") or "__MACOSX" in name.parts:
        return False
    last = name.suffix.lower()
    is_image = is_image_name(f"a{last}")
    if not member.isfile():
        ignored.append("link" if member.issym() or member.islnk() else "special file")
        return False
    if name.is_absolute() or ".." in name.parts:
        ignored.append("file whose name leads out of the tar")
        return False
    if is_image or last == _ROW_EXTENSION or (last in _CAPTION_EXTENSIONS and has_targets):
        return bool(extension)
    if last not in _CAPTION_EXTENSIONS:
        ignored.append(f"{last or 'file without an extension'}")
    return False


def _read_member(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], extension: str) -> bytes:
    stored = tar.extractfile(members[extension])  # returns a reader of the tar and writes nothing
    return stored.read() if stored else b""


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, dot, extension = last.partition(".")
    return folder + slash + stem, f"{dot}{extension}".lower()


def _stem(extension: str) -> str:
    return extension.rpartition(".")[0]


def _image_extensions(extensions: Iterable[str]) -> list[str]:
    return [extension for extension in extensions if is_image_name(f"a{extension}")]


def _read_records(
    path: AnyPath,
    key: str,
    files: Mapping[str, TarImage | bytes],
    read: Callable[[str], bytes],
    ignored: list[str],
    is_split: bool = False,
) -> Iterator[TarRecord]:
    """Read the records among files with one name up to the first dot; `read` returns the content of one.

    One with a plain extension is the image, rather than a mask in `.seg.png`. Without it, or with very many images
    (`is_split`), each image is a record.
    """
    images = _image_extensions(files)
    plain = [extension for extension in images if not _stem(extension)]
    chosen = plain[:1] if plain and not is_split and len(images) <= MAX_IMAGES else images
    stems = {"", *map(_stem, chosen)}
    unread = [each for each in files if each not in chosen and (each in images or _stem(each) not in stems)]
    ignored += ["further file of a record"] * len(unread) if images else ["target without an image"] * len(files)
    for image in chosen:
        levels = dict.fromkeys(("", _stem(image)))
        targets = {each.removeprefix(stem): each for stem in levels for each in files if _stem(each) == stem}
        try:
            yield TarRecord(key + image, files[image], _record_rows(path, key, targets, read))
        except DatasetError as error:
            yield TarRecord(key + image, files[image], [], error=error)


def _record_rows(path: AnyPath, key: str, targets: Mapping[str, str], read: Callable[[str], bytes]) -> list[Row]:
    """Return the rows of an image; `targets` maps `.json` and `.txt` to the extensions of its files."""
    rows: list[Row] = [{}]
    if _ROW_EXTENSION in targets:
        extension = targets[_ROW_EXTENSION]
        rows = _parse_rows(_decode_text(path, key, extension, read), f"{path}: {key}{extension}")
    caption = next((targets[extension] for extension in _CAPTION_EXTENSIONS if extension in targets), None)
    if caption is not None and not any(row.get("text") or row.get("answer") for row in rows):
        text = " ".join(_decode_text(path, key, caption, read).split())
        rows = [{**row, "text": text} for row in rows]
    return rows


def _decode_text(path: AnyPath, key: str, extension: str, read: Callable[[str], bytes]) -> str:
    try:
        return read(extension).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: {key}{extension} is not UTF-8 text", "write it as UTF-8") from None


def _parse_rows(text: str, where: str) -> list[Row]:
    hint = "write a row, or a list of rows, as JSON"
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where} is not JSON: {error.msg}", hint) from None
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{where} is neither a row nor a list of rows", hint)
    return rows
