"""Sources of the formats of annotation programs and text detection datasets, recognized by the shape of their files."""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from florence2.data.folders.listing import Listing, display_path, walk
from florence2.data.formats.annotations import AnnotatedImage, split_aliases
from florence2.data.formats.annotators import createml, cvat, label_studio, open_images, supervisely, via, vott
from florence2.data.formats.annotators.values import HEAD_BYTES, peek_json
from florence2.data.formats.coco_layout import coco_image_folder
from florence2.data.formats.sources import AnnotationSource
from florence2.data.formats.text_detection import funsd, icdar, paddleocr
from florence2.errors import DatasetError
from florence2.model.tasks import OutputType

Read = Callable[[Path], Iterator[tuple[str, AnnotatedImage]]]


def _is_datumaro(document: Any) -> bool:
    return isinstance(document, dict) and {"categories", "items"} <= document.keys()


def _refuse_datumaro(path: Path) -> Iterator[tuple[str, AnnotatedImage]]:
    raise DatasetError(f"{path} is the JSON of Datumaro, which is not read", "export it as COCO or VOC")


_JSON_FORMATS: tuple[tuple[Callable[[Any], bool], Read], ...] = (
    (label_studio.is_label_studio, label_studio.read_label_studio),
    (createml.is_createml, createml.read_createml),
    (vott.is_vott, vott.read_vott),
    (via.is_via, via.read_via),
    (via.is_via3, via.refuse_via3),
    (_is_datumaro, _refuse_datumaro),
)
_FILE_FORMATS: tuple[tuple[Callable[[Path], bool], Read], ...] = (
    (cvat.is_cvat, cvat.read_cvat),
    (label_studio.is_label_studio_csv, label_studio.refuse_csv),
    (vott.is_vott_csv, vott.read_vott_csv),
    (via.is_via_csv, via.read_via_csv),
    (paddleocr.is_paddleocr, paddleocr.read_paddleocr),
)
# Only a JSON file with one of these keys near its beginning is parsed to recognize its format.
_JSON_KEYS = (
    b'"annotations"',
    b'"items"',
    b'"annotation_id"',
    b'"completions"',
    b'"assets"',
    b'"regions"',
    b'"_via_img_metadata"',
    b'"fname"',
)
_NAMES_TO_FIND = 20  # images whose names are tried in the folders that may contain them
_EXTENSIONS = (".json", ".xml", ".csv")
_SPLITS = ("train", *split_aliases("val"), "test")


def annotator_file_source(path: Path, root: Path | None) -> AnnotationSource | None:
    """Return the source of one file; `root` is the folder of the images, by default one beside the file."""
    if open_images.is_open_images(path):
        images = root or _image_folder(path.parent)
        return AnnotationSource(str(path), images, lambda: open_images.read_open_images(path, images))
    read = _reader(path)
    return None if read is None else _source(str(path), [(path, read)], root)


def annotator_folder_source(listing: Listing, split: str | None, root: Path | None) -> AnnotationSource | None:
    """Return the source of a folder, from the files in it or in its `annotations/` folder."""
    folder = listing.path
    if split is None and supervisely.supervisely_folders(folder):
        return AnnotationSource(display_path(folder), folder, lambda: supervisely.read_supervisely(folder))
    if split is None and icdar.icdar_files(listing):
        images = root or _image_folder(folder)
        name = display_path(folder)
        return AnnotationSource(name, images, lambda: icdar.read_icdar(listing, images), OutputType.QUADS)
    inner = folder / "annotations"
    if split is None and inner.is_dir() and funsd.is_funsd(peek_json(next(iter(sorted(inner.glob("*.json"))), inner))):
        images = root or _image_folder(folder)
        return AnnotationSource(display_path(folder), images, lambda: funsd.read_funsd(inner, images), OutputType.QUADS)
    listings = [listing, *([next(walk(inner, recursive=False))] if inner.is_dir() else [])]
    files = [path for each in listings for path in _candidates(each)]
    if boxes := next((file for file in _of_split(files, split) if open_images.is_open_images(file)), None):
        return annotator_file_source(boxes, root or _image_folder(folder))
    found = [(file, read) for file in _of_split(files, split) if (read := _reader(file))]
    return _source(display_path(folder), found, root) if found else None


def _candidates(listing: Listing) -> list[Path]:
    """Return the files of a folder that may be an export; a file with the stem of an image is about that image."""
    names = [name for name in listing.names if name.lower().endswith(_EXTENSIONS) or _may_be_labels(name.lower())]
    stems = {name.rpartition(".")[0] for name in listing.images()} if names else set()
    return [listing.path / name for name in names if name.rpartition(".")[0] not in stems]


def _may_be_labels(name: str) -> bool:
    return name.endswith(".txt") and any(part in name for part in paddleocr.LABEL_NAMES)


def _source(name: str, files: list[tuple[Path, Read]], root: Path | None) -> AnnotationSource:
    first_path, first_read = files[0]
    first_images = [image for _, image in islice(first_read(first_path), _NAMES_TO_FIND)] if root is None else []
    first_names = [name for image in first_images for name in (image.file_name, *image.other_names) if name]
    images = root or coco_image_folder(first_path, first_names)
    is_text = first_read is paddleocr.read_paddleocr
    output = OutputType.QUADS if is_text else OutputType.BOXES
    return AnnotationSource(name, images, lambda: chain.from_iterable(read(path) for path, read in files), output)


def _of_split(files: list[Path], split: str | None) -> list[Path]:
    """Select the files of a split by their names: of the split asked for, else of `train`, else all files."""

    def names_split(path: Path, names: tuple[str, ...]) -> bool:
        return bool(set(path.stem.lower().replace("_", "-").split("-")) & set(names))

    if split is not None:
        return [path for path in files if names_split(path, split_aliases(split))]
    first = [path for path in files if names_split(path, ("train",))]
    return first or [path for path in files if not names_split(path, _SPLITS)] or files


def _image_folder(folder: Path) -> Path:
    inner = next((folder / name for name in ("images", "imgs", "img") if (folder / name).is_dir()), None)
    return inner or folder


def _reader(path: Path) -> Read | None:
    if path.suffix.lower() != ".json":
        return next((read for is_format, read in _FILE_FORMATS if is_format(path)), None)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    document = peek_json(path) if any(key in head for key in _JSON_KEYS) else None
    return next((read for is_format, read in _JSON_FORMATS if is_format(document)), None)
