"""Which format lies at a path, and its samples: "here is a COCO list, a YOLO folder, ..." -> rows -> samples.

A folder with a table of its own (`metadata.jsonl`) is read by that, whatever else lies in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from florence2.data.columns import METADATA_NAMES, ColumnMapping, confine_to, samples_or_skipped
from florence2.data.folder import display_path, walk
from florence2.data.formats import coco, shards, voc, yolo
from florence2.data.formats.annotations import (
    AnnotatedImage,
    DatasetRow,
    image_beside,
    resolve_task,
    rows_from_annotations,
    split_aliases,
)
from florence2.data.sample import ResolvedDataset, Sample, Skipped, SkipReason
from florence2.errors import UserError
from florence2.model.tasks import find_task

_SPLITS = ("train", "val", "valid", "validation", "test")
_MEND = "put the picture there, or name its folder with --dataset_dir"


class DatasetSource(Protocol):
    """What a format gives: rows, each with its picture."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def root(self) -> Path | None: ...  # noqa: D102

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]: ...  # noqa: D102


@dataclass(frozen=True)
class AnnotationSource:
    """A list of objects, or many, about the pictures of the folder `root`."""

    name: str
    root: Path
    read: Callable[[], Iterator[tuple[str, AnnotatedImage]]]

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]:
        """Say what is known about each picture as answers to the task."""
        inside = confine_to(self.root, "name the folder of the pictures with --dataset_dir")
        for where, about in self.read():
            task = resolve_task(find_task(columns.task), about.captions is not None)
            located = inside(image_beside(self.root, about.file_name), where)
            image = Sample(located.id, located.path, "")
            for row in rows_from_annotations(about, task):
                yield DatasetRow(where, {**row, "file_name": located.id}, image, located.exists)


def resolve_source(source: DatasetSource, columns: ColumnMapping) -> ResolvedDataset:
    """Make the samples of a source."""
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for where, row, image, there in source.rows(columns):
        if not there:
            skipped.append(Skipped(image.id, SkipReason.ABSENT, str(image.image), _MEND))
            continue
        for each in samples_or_skipped(row, where, columns, image):
            if isinstance(each, Sample):
                samples.append(each)
            else:
                skipped.append(each)
    if not samples and not skipped:
        raise UserError(f"{source.name} holds nothing that answers `{columns.task}`", "choose another --task")
    return ResolvedDataset(source.name, source.root, samples, skipped)


def find_source(spec: str, split: str | None = None, images: str | Path | None = None) -> DatasetSource | None:
    """Find what lies at a path, if it is one of these formats; `pictures` is the folder of the pictures.

    Where splits are folders and none is asked for, `train` is read.
    """
    path = Path(spec).expanduser()
    root = Path(images).expanduser() if images is not None else None
    if path.is_file():
        return _file(path, split, root)
    if not path.is_dir():
        return shards.find_shards(spec)
    if any((path / name).is_file() for name in METADATA_NAMES):
        return None
    return _folder(path, split, root) or _within_split(path, split, root) or shards.find_shards(spec)


def _file(path: Path, split: str | None, root: Path | None) -> DatasetSource | None:
    if coco.is_coco(path):
        return _coco(path, root)
    if path.suffix.lower() in (".yaml", ".yml"):
        return _yolo(path, split)
    return shards.find_shards(str(path))


def _within_split(path: Path, split: str | None, root: Path | None) -> DatasetSource | None:
    wanted = _SPLITS if split is None else split_aliases(split)
    for name in wanted:
        if (path / name).is_dir() and (source := _folder(path / name, None, root)):
            return source
    return None


def _folder(path: Path, split: str | None, root: Path | None) -> DatasetSource | None:
    if split is None and (path / coco.LIST_NAME).is_file():
        return _coco(path / coco.LIST_NAME, root)
    for name in yolo.LIST_NAMES:
        if (path / name).is_file():
            return _yolo(path / name, split)
    if lists := sorted((path / "annotations").glob(f"instances_{split or 'train'}*.json")):
        return _coco(lists[0], root)
    listing = next(walk(path, recursive=False))
    if folders := voc.find_voc(path, listing):
        lists_of, beside = folders[0], root or folders[1]
        return AnnotationSource(display_path(path), beside, lambda: voc.read_voc(lists_of, beside, split))
    if split is None and voc.find_labelme(path, listing):
        return AnnotationSource(display_path(path), path, lambda: voc.read_labelme(path))
    return None


def _coco(path: Path, root: Path | None) -> DatasetSource:
    images = list(coco.read_coco(path))
    root = root or coco.images_as_coco(path, images[0][1].file_name)
    return AnnotationSource(str(path), root, lambda: iter(images))


def _yolo(path: Path, split: str | None) -> DatasetSource:
    opened = yolo.open_yolo(path, split)
    return AnnotationSource(str(path), opened.root, lambda: yolo.read_yolo(opened))
