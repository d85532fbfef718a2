"""Detection of the annotation format at a path, and the samples of its source.

A folder with a metadata table is read by that table, whatever else is in it.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from florence2.data.columns import (
    METADATA_NAMES,
    ColumnMapping,
    DatasetRow,
    count_columns,
    partition_samples,
    samples_from_rows,
)
from florence2.data.folders.listing import display_path, walk
from florence2.data.formats import coco, voc
from florence2.data.formats.annotation_programs import annotator_file_source, annotator_folder_source
from florence2.data.formats.annotations import split_aliases
from florence2.data.formats.coco_layout import coco_image_folder, find_coco, find_coco_beside
from florence2.data.formats.sources import AnnotationSource, DatasetSource
from florence2.data.formats.tfrecord.tfrecord_source import find_tfrecords
from florence2.data.formats.yolo.yolo_layout import NAME_LISTS, find_yolo, open_yolo
from florence2.data.formats.yolo.yolo_lines import read_yolo
from florence2.data.sample import ResolvedDataset
from florence2.data.streams.outputs.job_outputs import find_job_outputs
from florence2.data.streams.tars import tar_source as shards
from florence2.errors import DatasetError
from florence2.log import count_kinds

_SPLITS = ("train", "val", "valid", "validation", "test")
_ABSENT_HINT = "put the image at this path, or pass its folder as --dataset_dir"


def resolve_source(source: DatasetSource, columns: ColumnMapping) -> ResolvedDataset:
    """Make the samples of a source."""
    ignored: list[tuple[str, str]] = []

    def rows() -> Iterator[DatasetRow]:
        for row in source.rows(columns):
            ignored.extend((row.where, kind) for kind in row.ignored_shapes)
            ignored.extend(row.ignored_elsewhere)
            ignored.extend((where, "annotation of an image that is not listed") for where in row.unlisted_annotations)
            yield row

    unread: Counter[str] = Counter()
    counted = count_columns(rows(), unread)
    samples, skipped = partition_samples(samples_from_rows(counted, columns, _ABSENT_HINT))
    if not samples and not skipped:
        raise DatasetError(f"{source.name} has no targets for the task `{columns.task}`", "pass another --task")
    return ResolvedDataset(source.name, source.root, samples, skipped, ignored, unread_columns=unread)


def find_source(spec: str, split: str | None = None, dataset_dir: str | Path | None = None) -> DatasetSource | None:
    """Return the source at a path if it has one of these formats; `dataset_dir` is the folder of the images.

    Where splits are folders and `split` is None, the first of train, val, test is read.
    """
    if dataset_dir is None and (outputs := find_job_outputs(spec)):
        return outputs
    path = Path(spec).expanduser()
    root = Path(dataset_dir).expanduser() if dataset_dir is not None else None
    if root is not None and not root.is_dir():
        raise DatasetError(f"{root} is not a folder", "pass the folder of the images as --dataset_dir")
    if path.is_file():
        return _file_source(path, split, root)
    if not path.is_dir():
        return shards.find_shards(spec)
    if any((path / name).is_file() for name in METADATA_NAMES):
        return None
    source = _folder_source(path, split, root) or _split_source(path, split, root)
    return source or shards.find_shards(spec) or find_tfrecords(path)


def _file_source(path: Path, split: str | None, root: Path | None) -> DatasetSource | None:
    if coco.is_coco(path):
        return _coco_source(path, root)
    if path.suffix.lower() in (".yaml", ".yml") or path.name in NAME_LISTS:
        return _yolo_source(path, split, root)
    if path.name.endswith("obj.data") and (names := find_yolo(path.parent)):  # darknet
        return _yolo_source(names, split, root)
    voc.reject_one_image(path)
    return annotator_file_source(path, root) or find_tfrecords(path) or shards.find_shards(str(path))


def _split_source(path: Path, split: str | None, root: Path | None) -> DatasetSource | None:
    names = _SPLITS if split is None else split_aliases(split)
    for name in names:
        if any((path / name / table).is_file() for table in METADATA_NAMES):
            return None
        if (path / name).is_dir() and (source := _folder_source(path / name, None, root)):
            return source
    return None


def _folder_source(path: Path, split: str | None, root: Path | None) -> DatasetSource | None:
    if split is None and (path / coco.ANNOTATIONS_NAME).is_file():
        return _coco_source(path / coco.ANNOTATIONS_NAME, root)
    if yolo_config := find_yolo(path):
        return _yolo_source(yolo_config, split, root)
    if coco_file := find_coco(path, split):
        return _coco_source(coco_file, root)
    listing = next(walk(path, recursive=False))
    if voc_folders := voc.find_voc(path, listing, root):
        xml_folder, images = voc_folders
        return AnnotationSource(display_path(path), images, lambda: voc.read_voc(xml_folder, images, split))
    if labelme_folders := voc.find_labelme(path, listing, root) if split is None else None:
        return AnnotationSource(display_path(path), labelme_folders[1], lambda: voc.read_labelme(*labelme_folders))
    if coco_file := find_coco_beside(listing, split):
        return _coco_source(coco_file, root)
    return annotator_folder_source(listing, split, root)


def _coco_source(path: Path, root: Path | None) -> DatasetSource:
    images = list(coco.read_coco(path))
    kinds = count_kinds(kind for _, image in images for kind in image.ignored_shapes)
    if kinds and not any(image.annotations or image.captions for _, image in images):
        raise DatasetError(f"{path} has no object that can be read, only {kinds}", "pass a file of objects or captions")
    root = root or coco_image_folder(path, [image.file_name for _, image in images])
    return AnnotationSource(str(path), root, lambda: iter(images))


def _yolo_source(path: Path, split: str | None, root: Path | None) -> DatasetSource:
    dataset = open_yolo(path, split, root)
    return AnnotationSource(str(path), dataset.root, lambda: read_yolo(dataset))
