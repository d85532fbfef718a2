"""A dataset written anew in another format; the source is only read.

    jsonl    metadata.jsonl beside the pictures: every task, boxes in pixels
    coco     _annotations.coco.json beside the pictures: boxes and outlines
    yolo     data.yaml, images/, labels/: boxes, or outlines where every object has one
    folder   a text file beside each picture: captions
    shards   tars of pictures and rows: every task

Pictures are linked (a second name for the same bytes on disk) or copied, never moved; what cannot be linked is copied.
"""

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from florence2.data.columns import METADATA_NAMES, ColumnMapping
from florence2.data.formats.annotations import AnnotatedImage, Annotation, DatasetRow, annotations_from_row
from florence2.data.formats.coco import LIST_NAME, write_coco
from florence2.data.formats.shards import write_shards
from florence2.data.formats.yolo import write_yolo
from florence2.data.sample import Sample
from florence2.data.tables import Row
from florence2.errors import UserError
from florence2.model.tasks import InputType, OutputType, split_prompt

OutputFormat = Literal["jsonl", "coco", "yolo", "folder", "shards"]
LinkMode = Literal["link", "copy"]


@dataclass
class ImageRecord:
    """All that is known about one picture, in the words of our own rows."""

    image: Sample
    name: str
    rows: list[Row] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    about_objects: bool = False


@dataclass(frozen=True)
class ConversionResult:
    """What was written, and how many rows were left out for which reason."""

    num_images: int
    num_rows: int
    left_out: Counter[str]

    def lines(self) -> Iterator[str]:
        """Say it."""
        yield f"{self.num_images:,} pictures with {self.num_rows:,} answers are written"
        yield from (f"left out: {number:,} {why}" for why, number in self.left_out.items())


def convert(
    entries: Iterable[DatasetRow], columns: ColumnMapping, folder: Path, to: OutputFormat, how: LinkMode = "link"
) -> ConversionResult:
    """Write a dataset into a folder that is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already", "name a new folder")
    left_out: Counter[str] = Counter()
    told = list(_collected(entries, columns, left_out).values())
    kept = [each for each in told if to != "folder" or each.captions]
    if to in ("coco", "yolo") and not any(each.about_objects for each in kept):
        kept = []
    if not kept:
        raise UserError(f"nothing of it can be written as {to}", "choose another --to, or another --task")
    refuse_shared_stems(to, (each.name for each in kept))
    folder.mkdir(parents=True, exist_ok=True)
    rows = _WRITERS[to](kept, folder, how, left_out)
    return ConversionResult(len(kept), rows, +left_out)


def _collected(entries: Iterable[DatasetRow], columns: ColumnMapping, left_out: Counter[str]) -> dict[str, ImageRecord]:
    told: dict[str, ImageRecord] = {}
    for entry in entries:
        try:
            if not entry.exists:
                raise UserError("a picture does not exist")
            size = entry.image.size()
            one = told.get(entry.image.id) or ImageRecord(entry.image, _named(entry.image))
            _add(one, entry, columns, lambda size=size: size)  # type: ignore[misc]
            told[entry.image.id] = one
        except UserError:
            left_out["rows that `florence2 data check` finds wrong"] += 1
    return told


def _add(told: ImageRecord, entry: DatasetRow, columns: ColumnMapping, size: Callable[[], tuple[int, int]]) -> None:
    task, asked = columns.task_and_input(entry.row, entry.where)
    texts, answer = columns.texts(entry.row, entry.where), entry.row.get("answer")
    if not texts and not isinstance(answer, dict | str):
        raise UserError(f"{entry.where} has no answer")
    if isinstance(answer, str):
        texts, answer = texts or [answer.strip()], None
    row: Row = {"file_name": told.name, "task": task.token}
    if asked:
        row["input"] = asked
    if texts:
        row["text"] = texts[0] if len(texts) == 1 else texts
    if answer is not None:
        row["answer"] = answer
    things = annotations_from_row(task, asked, answer, texts[0] if texts else "", size)
    if things is None and task.input_type is InputType.NOTHING:
        told.captions += texts
    told.about_objects |= things is not None
    told.annotations += [thing for thing in things or [] if thing not in told.annotations]
    told.rows.append(row)


def _named(picture: Sample) -> str:
    """Name the file that is written: the id, with an extension where a dataset gives none."""
    source = picture.source()
    if isinstance(source, Path) or Path(picture.id).suffix:
        return picture.id
    if isinstance(source, Image.Image):
        return f"{picture.id}.png"
    with Image.open(io.BytesIO(source)) as image:
        return f"{picture.id}.{(image.format or 'png').lower()}"


def _encoded(picture: Sample) -> bytes:
    source = picture.source()
    if isinstance(source, Path):
        return source.read_bytes()
    if isinstance(source, bytes):
        return source
    encoded = io.BytesIO()
    source.save(encoded, "PNG")
    return encoded.getvalue()


def _put(picture: Sample, path: Path, how: LinkMode) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = picture.source()
    if not isinstance(source, Path):
        path.write_bytes(_encoded(picture))
        return
    if how == "link":
        try:
            os.link(source.resolve(), path)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(source, path)
    else:
        shutil.copy2(source, path)


def _jsonl(told: list[ImageRecord], folder: Path, how: LinkMode, _: Counter[str]) -> int:
    rows = [row for each in told for row in each.rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / METADATA_NAMES[0]).write_text(text, encoding="utf-8")
    for each in told:
        _put(each.image, folder / each.name, how)
    return len(rows)


def _annotated(told: ImageRecord, left_out: Counter[str]) -> AnnotatedImage:
    words = len([row for row in told.rows if split_prompt(row["task"])[0].output_type is OutputType.TEXT])
    left_out["answers in words"] += words if not told.annotations else 0
    return AnnotatedImage(told.name, told.annotations, told.image.size())


def _coco(told: list[ImageRecord], folder: Path, how: LinkMode, left_out: Counter[str]) -> int:
    write_coco(folder / LIST_NAME, [_annotated(each, left_out) for each in told])
    for each in told:
        _put(each.image, folder / each.name, how)
    return sum(len(each.annotations) for each in told)


def _yolo(told: list[ImageRecord], folder: Path, how: LinkMode, left_out: Counter[str]) -> int:
    for each in told:
        each.name = f"images/{each.name.removeprefix('images/')}"
        _put(each.image, folder / each.name, how)
    left_out["parts of outlines, since a line of YOLO holds one"] += write_yolo(
        folder, [_annotated(each, left_out) for each in told]
    )
    return sum(len(each.annotations) for each in told)


def _folder(told: list[ImageRecord], folder: Path, how: LinkMode, left_out: Counter[str]) -> int:
    for each in told:
        _put(each.image, folder / each.name, how)
        (folder / each.name).with_suffix(".txt").write_text(each.captions[0] + "\n", encoding="utf-8")
        left_out["answers that are no caption, or a second one"] += len(each.rows) - 1
    return len(told)


def _shards(told: list[ImageRecord], folder: Path, _: LinkMode, __: Counter[str]) -> int:
    def bare(rows: list[Row]) -> list[Row]:
        return [{key: value for key, value in row.items() if key != "file_name"} for row in rows]

    write_shards(folder, ((each.name, _encoded(each.image), bare(each.rows)) for each in told))
    return sum(len(each.rows) for each in told)


def refuse_shared_stems(to: OutputFormat, names: Iterable[str]) -> None:
    """Refuse pictures whose text files would be one, in the formats that have one beside each picture."""
    stems: dict[str, str] = {}
    for name in names if to in ("yolo", "folder") else ():
        before = stems.setdefault(str(Path(name).with_suffix("")), name)
        if before != name:
            raise UserError(f"{before} and {name} would share one text file", "rename one of them")


_WRITERS: dict[str, Callable[[list[ImageRecord], Path, LinkMode, Counter[str]], int]] = {
    "jsonl": _jsonl,
    "coco": _coco,
    "yolo": _yolo,
    "folder": _folder,
    "shards": _shards,
}
