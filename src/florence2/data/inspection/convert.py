"""Conversion of a dataset to another format; the source is not changed.

    jsonl    metadata.jsonl beside the images: every task, boxes in pixels
    coco     _annotations.coco.json beside the images: boxes and polygons
    yolo     data.yaml, images/, labels/: boxes, or polygons where every object has one
    folder   a text file beside each image: captions
    shards   tars of images and rows: every task

Images are hard-linked or copied, never moved; a file that cannot be linked is copied.
"""

import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from florence2.data.answer_column import check_answer
from florence2.data.columns import METADATA_NAMES, ColumnMapping, DatasetRow
from florence2.data.formats.annotations import AnnotatedImage, Annotation, annotations_from_row
from florence2.data.formats.coco import ANNOTATIONS_NAME, write_coco
from florence2.data.formats.yolo.yolo_lines import write_yolo
from florence2.data.image import OpenedImage, Size
from florence2.data.sample import Sample
from florence2.data.streams.tars.tar_writer import write_shards
from florence2.data.tables import Row
from florence2.errors import DatasetError, OptionError, UserError
from florence2.files import has_case_sensitive_names, path_inside, reserved_part, to_json
from florence2.log import count_noun
from florence2.model.tasks import InputType, OutputType, split_prompt

OutputFormat = Literal["jsonl", "coco", "yolo", "folder", "shards"]
LinkMode = Literal["link", "copy"]
_ISSUES = "rows that are issues of `florence2 data check`"


@dataclass(frozen=True)
class ImageRecord:
    """One image with all its rows, and the annotations and captions in them."""

    image: Sample
    name: str
    rows: list[Row] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    has_located_rows: bool = False


@dataclass(frozen=True)
class ConversionResult:
    """The number of images and rows that were written, and of items that were skipped by reason."""

    num_images: int
    num_rows: int
    skipped: Counter[str]

    def lines(self) -> Iterator[str]:
        """Yield the lines of a summary."""
        yield f"wrote {count_noun(self.num_images, 'image')} with {count_noun(self.num_rows, 'target')}"
        yield from (f"skipped: {number:,} {reason}" for reason, number in self.skipped.items())


def convert(
    rows: Iterable[DatasetRow], columns: ColumnMapping, folder: Path, to: OutputFormat, link_mode: LinkMode = "link"
) -> ConversionResult:
    """Write a dataset into a folder that is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{folder} exists already", "pass a new folder")
    skipped: Counter[str] = Counter()
    records = _collect_records(rows, columns, skipped)
    if not records and skipped[_ISSUES]:
        raise DatasetError(f"none of {skipped[_ISSUES]:,} rows can be read", "run `florence2 data check` to see why")
    if to == "folder":
        records = [record for record in records if record.captions]
    if to in ("coco", "yolo") and not any(record.has_located_rows for record in records):
        records = []
    if not records:
        raise DatasetError(f"the dataset has no target that {to} can store", "pass another --to, or another --task")
    check_distinct_stems(to, (record.name for record in records))
    folder.mkdir(parents=True, exist_ok=True)
    if to != "shards":  # whose names are inside tars
        _check_file_names(to, [record.name for record in records], folder)
    return ConversionResult(len(records), _WRITERS[to](records, folder, link_mode, skipped), +skipped)


def _collect_records(rows: Iterable[DatasetRow], columns: ColumnMapping, skipped: Counter[str]) -> list[ImageRecord]:
    records: dict[str, ImageRecord] = {}
    for row in rows:
        for kind in (*row.ignored_shapes, *(kind for _, kind in row.ignored_elsewhere)):
            skipped[f"{kind} (not read)"] += 1
        skipped.update(f"values of the column `{name}`" for name in row.unread_columns)
        try:
            if not row.exists:
                raise DatasetError("the image does not exist")
            if row.error is not None:
                raise row.error
            size = row.image.size()
            record = records.get(row.image.id) or ImageRecord(row.image, _file_name(row.image))
            path_inside(Path(), record.name)
            records[row.image.id] = _with_row(record, row, columns, size)
        except UserError:
            skipped[_ISSUES] += 1
    return list(records.values())


def _with_row(record: ImageRecord, dataset_row: DatasetRow, columns: ColumnMapping, size: Size) -> ImageRecord:
    task, task_input = columns.task_and_input(dataset_row.row, dataset_row.where)
    texts, answer = columns.texts(dataset_row.row, dataset_row.where), dataset_row.row.get("answer")
    if not texts and not isinstance(answer, dict | str):
        raise DatasetError(f"{dataset_row.where} has no target")
    if isinstance(answer, str):
        texts, answer = texts or [answer.strip()], None
    row: Row = {"file_name": record.name, "task": task.token}
    if task_input:
        row["input"] = task_input
    if texts:
        row["text"] = texts[0] if len(texts) == 1 else texts
    if answer is not None:
        row["answer"] = answer
    annotations = dataset_row.annotations
    if annotations is None:
        annotations = annotations_from_row(task, task_input, answer, texts[0] if texts else "", lambda: size)
    if isinstance(answer, dict):
        check_answer(task, answer, dataset_row.where, size)
    is_caption = annotations is None and task.input_type is InputType.NOTHING
    new = [annotation for annotation in annotations or [] if annotation not in record.annotations]
    return replace(
        record,
        rows=[*record.rows, row],
        annotations=[*record.annotations, *new],
        captions=[*record.captions, *(texts if is_caption else [])],
        has_located_rows=record.has_located_rows or annotations is not None,
    )


def _file_name(image: Sample) -> str:
    """Return the name of the written file: the id, with an extension where the id has none."""
    source = image.source()
    if isinstance(source, Path) or Path(image.id).suffix:
        return image.id
    if isinstance(source, Image.Image | OpenedImage):
        return f"{image.id}.png"
    with Image.open(io.BytesIO(source)) as opened:
        return f"{image.id}.{(opened.format or 'png').lower()}"


def _encode_image(image: Sample) -> bytes:
    source = image.source()
    if isinstance(source, Path):
        return source.read_bytes()
    if isinstance(source, bytes):
        return source
    encoded = io.BytesIO()
    (source.image if isinstance(source, OpenedImage) else source).save(encoded, "PNG")
    return encoded.getvalue()


def _write_image(image: Sample, path: Path, link_mode: LinkMode) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = image.source()
    if not isinstance(source, Path):
        path.write_bytes(_encode_image(image))
        return
    if link_mode == "link":
        try:
            os.link(source.resolve(), path)
        except OSError:  # another disk, or a file system without hard links
            shutil.copy2(source, path)
    else:
        shutil.copy2(source, path)


def _write_images(records: Iterable[ImageRecord], folder: Path, link_mode: LinkMode) -> None:
    for record in records:
        _write_image(record.image, folder / record.name, link_mode)


def _write_jsonl(records: list[ImageRecord], folder: Path, link_mode: LinkMode, _: Counter[str]) -> int:
    rows = [row for record in records for row in record.rows]
    text = "".join(to_json(row) + "\n" for row in rows)
    (folder / METADATA_NAMES[0]).write_text(text, encoding="utf-8")
    _write_images(records, folder, link_mode)
    return len(rows)


def _annotated_image(record: ImageRecord, skipped: Counter[str]) -> AnnotatedImage:
    num_texts = len([row for row in record.rows if split_prompt(row["task"])[0].output_type is OutputType.TEXT])
    skipped["text targets"] += num_texts if not record.annotations else 0
    return AnnotatedImage(record.name, record.annotations, record.image.size())


def _write_coco(records: list[ImageRecord], folder: Path, link_mode: LinkMode, skipped: Counter[str]) -> int:
    write_coco(folder / ANNOTATIONS_NAME, [_annotated_image(record, skipped) for record in records])
    _write_images(records, folder, link_mode)
    return sum(len(record.annotations) for record in records)


def _write_yolo(records: list[ImageRecord], folder: Path, link_mode: LinkMode, skipped: Counter[str]) -> int:
    records = [replace(record, name=f"images/{record.name.removeprefix('images/')}") for record in records]
    _write_images(records, folder, link_mode)
    images = [_annotated_image(record, skipped) for record in records]
    skipped.update(write_yolo(folder, images))
    return sum(len(record.annotations) for record in records)


def _write_folder(records: list[ImageRecord], folder: Path, link_mode: LinkMode, skipped: Counter[str]) -> int:
    _write_images(records, folder, link_mode)
    for record in records:
        (folder / record.name).with_suffix(".txt").write_text(record.captions[0] + "\n", encoding="utf-8")
        skipped["targets that are not the first caption of an image"] += len(record.rows) - 1
    return len(records)


def _write_shards(records: list[ImageRecord], folder: Path, _: LinkMode, __: Counter[str]) -> int:
    def without_file_names(rows: list[Row]) -> list[Row]:
        return [{key: value for key, value in row.items() if key != "file_name"} for row in rows]

    images = ((record.name, _encode_image(record.image), without_file_names(record.rows)) for record in records)
    write_shards(folder, images)
    return sum(len(record.rows) for record in records)


def _check_file_names(to: OutputFormat, names: list[str], folder: Path) -> None:
    """Raise a DatasetError for images that the file system of `folder` would write to one file, or to none."""
    part, name = next(((reserved_part(name), name) for name in names if reserved_part(name)), ("", ""))
    if part and sys.platform == "win32":
        raise DatasetError(f"{name}: `{part}` is no file name on Windows", "rename it, or convert to shards")
    by_folded: dict[str, str] = {}
    for name in names:
        before = by_folded.setdefault(
            (str(Path(name).with_suffix("")) if to in _FORMATS_WITH_TEXT_FILES else name).casefold(), name
        )
        if before != name and not has_case_sensitive_names(folder):
            what = f"{before} and {name} differ by case alone, which the file system of {folder} ignores"
            raise DatasetError(what, "rename one of them, or convert to shards")


def check_distinct_stems(to: OutputFormat, names: Iterable[str]) -> None:
    """Raise a DatasetError for images with the same stem, in the formats that have a text file beside each image."""
    stems: dict[str, str] = {}
    for name in names if to in _FORMATS_WITH_TEXT_FILES else ():
        before = stems.setdefault(str(Path(name).with_suffix("")), name)
        if before != name:
            raise DatasetError(f"{before} and {name} would have the same text file", "rename one of them")


_FORMATS_WITH_TEXT_FILES = ("yolo", "folder")
_WRITERS: dict[str, Callable[[list[ImageRecord], Path, LinkMode, Counter[str]], int]] = {
    "jsonl": _write_jsonl,
    "coco": _write_coco,
    "yolo": _write_yolo,
    "folder": _write_folder,
    "shards": _write_shards,
}
