"""TFRecord files of TensorFlow's object detection API, read without TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of 4 bytes, a `tf.train.Example` in protobuf's wire format,
and another checksum. Checksums are not verified. The keys are `image/encoded`, `image/filename`,
`image/object/class/text`, and `image/object/bbox/xmin` and so on as fractions. Sources: TensorFlow's documentation of
TFRecord and of the object detection API.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.formats.annotations import AnnotatedImage, Annotation, resolve_task, rows_from_annotations
from florence2.data.formats.tfrecord.example_proto import read_example
from florence2.data.image import ImageError, image_size
from florence2.data.sample import Sample
from florence2.errors import DatasetError
from florence2.model.tasks import find_task

_EXTENSIONS = (".tfrecord", ".tfrecords", ".record")
_SIDES = tuple(f"image/object/bbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))
_HEADER = 12  # bytes before a record: its length and a checksum
_CHECKSUM = 4


@dataclass(frozen=True, slots=True)
class RecordImage:
    """The image in a record of a file; a call returns its bytes."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        """Read the encoded image."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            encoded: bytes = read_example(file.read(self.size))["image/encoded"][0]
            return encoded


@dataclass(frozen=True)
class TfRecordSource:
    """A list of TFRecord files."""

    name: str
    paths: tuple[Path, ...]
    root: None = None

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]:
        """Read the objects of each record as rows of the task."""
        task = resolve_task(find_task(columns.task), has_captions=False)
        for path in self.paths:
            prefix = f"{path.name}/" if len(self.paths) > 1 else ""
            for number, (offset, content) in enumerate(_read_records(path), start=1):
                where = f"{path} record {number}"
                try:
                    example = read_example(content)
                    name = prefix + _file_name(example, number)
                    image = Sample(name, RecordImage(path, offset, len(content)), "")
                    annotated = _annotated_image(name, example, where)
                except DatasetError as error:
                    yield DatasetRow.unreadable(where, error)
                    continue
                for row in rows_from_annotations(annotated, task):
                    yield DatasetRow(where, row, image, annotations=annotated.annotations)


def find_tfrecords(path: Path) -> TfRecordSource | None:
    """Find TFRecord files: one file, or those of a folder, also in shards such as `train.record-00000-of-00010`."""
    if path.is_dir():
        paths = tuple(sorted(each for each in path.iterdir() if _is_tfrecord_name(each.name)))
    else:
        paths = (path,) if path.is_file() and _is_tfrecord_name(path.name) else ()
    return TfRecordSource(str(path), paths) if paths else None


def _is_tfrecord_name(name: str) -> bool:
    stem, of, _ = name.lower().partition("-0")
    return (stem if of else name.lower()).endswith(_EXTENSIONS)


def _read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the position and the content of each record."""
    with path.open("rb") as file:
        while header := file.read(_HEADER):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else -1
            if header[:2] == b"\x1f\x8b":
                raise DatasetError(f"{path} is a compressed TFRecord", "decompress it with gunzip")
            offset = file.tell()
            content = file.read(length) if 0 <= length < path.stat().st_size else b""
            if len(content) != length:
                raise DatasetError(f"{path} is not a TFRecord, or is truncated after byte {offset}", "write it again")
            yield offset, content
            file.seek(_CHECKSUM, 1)


def _file_name(example: dict[str, list[Any]], number: int) -> str:
    names = example.get("image/filename") or example.get("image/source_id") or [b""]
    name = _text(names[0])
    extension = _text((example.get("image/format") or [b"jpg"])[0])
    name = name.replace("\\", "/").rpartition("/")[2] or f"{number:08d}"
    return name if "." in name else f"{name}.{extension}"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _annotated_image(name: str, example: dict[str, list[Any]], where: str) -> AnnotatedImage:
    encoded = next(iter(example.get("image/encoded", [])), None)
    if not isinstance(encoded, bytes) or not any(side in example for side in _SIDES):
        keys = ", ".join(sorted(example)[:8])
        hint = "write the keys of the object detection API, or convert it to COCO"
        raise DatasetError(f"{where} has no `image/encoded` or no `image/object/bbox/xmin`; it has {keys}", hint)
    try:
        width, height = image_size(encoded, name=where)
    except ImageError:
        width, height = 1, 1  # the image is refused when it is opened
    sides = [example.get(side, []) for side in _SIDES]
    if any(isinstance(side, bytes) or not math.isfinite(side) for each in sides for side in each):
        raise DatasetError(f"{where} has sides of boxes that are not numbers", "correct or remove them")
    labels = [_text(label) for label in example.get("image/object/class/text", [])]
    if len({len(labels), *map(len, sides)}) > 1:
        hint = "write `image/object/class/text` and the four sides for each object"
        raise DatasetError(f"{where} has {len(sides[0])} boxes and {len(labels)} labels", hint)
    objects = zip(labels, *sides, strict=True)
    boxes = [Annotation(label, [x1 * width, y1 * height, x2 * width, y2 * height]) for label, x1, y1, x2, y2 in objects]
    return AnnotatedImage(name, boxes, (width, height))
