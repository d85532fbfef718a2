"""YOLO datasets: `data.yaml`, images in `images/`, and a text file for each in `labels/`.

A line is a class and either a box (center x, center y, width, height) or a polygon (x y x y ...), as fractions of the
image's sides. An image without a text file has no objects.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from florence2.data.folders.listing import read_text, walk
from florence2.data.formats.annotations import AnnotatedImage, Annotation, split_aliases
from florence2.data.image import ImageError, Size, image_size
from florence2.errors import DatasetError
from florence2.model.geometry import AnswerItem, bounding_box

CONFIG_NAMES = ("data.yaml", "data.yml", "dataset.yaml")


@dataclass(frozen=True)
class YoloDataset:
    """One split of a YOLO dataset: the folder that contains the images, their paths, and the class names."""

    root: Path
    images: Sequence[Path]
    names: dict[int, str]


def open_yolo(path: Path, split: str | None) -> YoloDataset:
    """Read `data.yaml` and list the images of a split: the given one, else `train`, else the first that exists."""
    try:
        config = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DatasetError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or "names" not in config:
        raise DatasetError(f"{path} has no `names` of classes", "list them, as in `names: [cat, dog]`")
    names = config["names"]
    if not isinstance(names, dict | list):
        raise DatasetError(f"{path} has `names` that are not a list", "list them, as in `names: [cat, dog]`")
    name_by_class = names if isinstance(names, dict) else dict(enumerate(names))
    candidates = split_aliases(split) if split else ("train", *split_aliases("val"), "test")
    paths = next((config[each] for each in candidates if config.get(each)), None)
    if not paths:
        keys = ", ".join(f"`{key}`" for key in config)
        raise DatasetError(f"{path} has no split `{candidates[0]}`", f"pass a split among its keys {keys}")
    base = path.parent / str(config.get("path") or "")
    base = base if base.is_dir() else path.parent  # `path` is often a folder on another machine
    sources = [_resolve_path(base, str(each)) for each in (paths if isinstance(paths, list) else [paths])]
    images = [image for source in sources for image in _list_images(source)]
    if not images:
        raise DatasetError(f"{path} points to {sources[0]}, which contains no images", "fix the paths in it")
    folders = sources if all(source.is_dir() for source in sources) else [base]
    root = folders[0] if len(folders) == 1 else base
    return YoloDataset(root, images, {int(number): str(name) for number, name in name_by_class.items()})


def _resolve_path(base: Path, name: str) -> Path:
    """Find a split's folder or list; some exporters write `../train/images` and mean `train/images`."""
    for path in (base / name, base / name.removeprefix("../")):
        if path.exists():
            return path
    raise DatasetError(f"{base / name} does not exist", "fix the paths in data.yaml")


def _list_images(source: Path) -> list[Path]:
    if source.is_dir():
        return [listing.path / name for listing in walk(source, recursive=True) for name in listing.images()]
    return [source.parent / line.strip() for line in read_text(source).splitlines() if line.strip()]


def read_yolo(yolo: YoloDataset) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the images of a split, each with the path of its labels."""
    for image in yolo.images:
        labels = label_path(image)
        try:
            size = image_size(image)
        except ImageError:
            size = (1, 1)  # the value is never used: a later check rejects the image
        lines = read_text(labels).splitlines() if labels.is_file() else []
        annotations = [
            _parse_line(line.split(), size, yolo.names, f"{labels} line {number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        yield str(labels), AnnotatedImage(_relative_name(image, yolo.root), annotations)


def _relative_name(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)


def label_path(image: Path) -> Path:
    """Return the label file of an image: in `labels/` where the image is in `images/`, else beside the image."""
    parts = list(image.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :])
    return image.with_suffix(".txt")


def _parse_line(fields: list[str], size: Size, names: dict[int, str], where: str) -> Annotation:
    try:
        number, *fractions = int(float(fields[0])), *map(float, fields[1:])
    except ValueError:
        raise DatasetError(f"{where} is not a row of numbers", "write a class and four numbers, or a polygon") from None
    if number not in names:
        raise DatasetError(f"{where} has the class {number}, which is not in `names`", "add it to data.yaml")
    if len(fractions) in (4, 5):  # a fifth number is a predicted score
        x, y, width, height = (fraction * size[i % 2] for i, fraction in enumerate(fractions[:4]))
        return Annotation(names[number], [x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    if len(fractions) < 6 or len(fractions) % 2:
        raise DatasetError(
            f"{where} has {len(fractions)} numbers after its class",
            "write 4 numbers for a box, or an even number for a polygon",
        )
    polygon = [fraction * size[i % 2] for i, fraction in enumerate(fractions)]
    return Annotation(names[number], bounding_box([polygon]), (polygon,))


def write_yolo(folder: Path, images: Iterable[AnnotatedImage]) -> int:
    """Write `data.yaml` and `labels/`; return the number of polygons that were dropped.

    The file names of the images, whose sizes must be set, start with `images/`. Lines are polygons where every object
    has one, else boxes; of an object with several polygons, the line has the largest.
    """
    images = list(images)
    annotations = [annotation for image in images for annotation in image.annotations]
    as_polygons = bool(annotations) and all(annotation.polygons for annotation in annotations)
    names = sorted({annotation.label for annotation in annotations})
    numbers = {name: number for number, name in enumerate(names)}
    for image in images:
        path = label_path(folder / image.file_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = image.size or (1, 1)
        lines = [_format_line(numbers[each.label], each, size, as_polygons) for each in image.annotations]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    config: dict[str, Any] = {"path": ".", "train": "images", "val": "images", "nc": len(names), "names": names}
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    (folder / CONFIG_NAMES[0]).write_text(text, encoding="utf-8")
    return sum(len(annotation.polygons) - 1 for annotation in annotations) if as_polygons else 0


def _format_line(number: int, annotation: Annotation, size: Size, as_polygon: bool) -> str:
    if as_polygon:
        coords = max(annotation.polygons, key=lambda polygon: AnswerItem.box(bounding_box([polygon])).area)
    else:
        x1, y1, x2, y2 = annotation.box
        coords = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    return " ".join([str(number), *(f"{value / size[i % 2]:.8g}" for i, value in enumerate(coords))])
