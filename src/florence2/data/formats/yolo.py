"""YOLO: `data.yaml`, pictures under `images/`, and a text file for each under `labels/`.

A line is a class and either a box (middle x, middle y, width, height) or an outline (x y x y ...), in parts of the
picture's sides. A picture without a text file has no objects.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from florence2.data.folder import read_text, walk
from florence2.data.formats.annotations import AnnotatedImage, Annotation, bounding_box, split_aliases
from florence2.data.image import ImageError, Size, image_size
from florence2.errors import UserError

LIST_NAMES = ("data.yaml", "data.yml", "dataset.yaml")


@dataclass(frozen=True)
class YoloDataset:
    """What `data.yaml` says about one split: the pictures, the folder they are all in, and the names of the classes."""

    root: Path
    images: Sequence[Path]
    names: dict[int, str]


def open_yolo(path: Path, split: str | None) -> YoloDataset:
    """Read `data.yaml` and list the pictures of a split: the one asked for, else `train`, else the first there is."""
    try:
        told = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(told, dict) or "names" not in told:
        raise UserError(f"{path} has no `names` of classes", "list them, as in `names: [cat, dog]`")
    names = told["names"]
    if not isinstance(names, dict | list):
        raise UserError(f"{path} has `names` that are no list", "list them, as in `names: [cat, dog]`")
    by_number = names if isinstance(names, dict) else dict(enumerate(names))
    wanted = split_aliases(split) if split else ("train", *split_aliases("val"), "test")
    places = next((told[each] for each in wanted if told.get(each)), None)
    if not places:
        raise UserError(f"{path} has no split `{wanted[0]}`", f"its keys are {', '.join(f'`{key}`' for key in told)}")
    base = path.parent / str(told.get("path") or "")
    base = base if base.is_dir() else path.parent  # `path` often names a folder of another machine
    found = [_place(base, str(place)) for place in (places if isinstance(places, list) else [places])]
    images = [image for place in found for image in _listed(place)]
    if not images:
        raise UserError(f"{path} leads to no pictures in {found[0]}", "mend the paths in it")
    folders = found if all(place.is_dir() for place in found) else [base]
    root = folders[0] if len(folders) == 1 else base
    return YoloDataset(root, images, {int(number): str(name) for number, name in by_number.items()})


def _place(base: Path, named: str) -> Path:
    """Find a split's folder or list; some exporters write `../train/images` where they mean `train/images`."""
    for place in (base / named, base / named.removeprefix("../")):
        if place.exists():
            return place
    raise UserError(f"{base / named} does not exist", "mend the paths in data.yaml")


def _listed(place: Path) -> list[Path]:
    if place.is_dir():
        return [listing.path / name for listing in walk(place, recursive=True) for name in listing.images()]
    return [place.parent / line.strip() for line in read_text(place).splitlines() if line.strip()]


def read_yolo(yolo: YoloDataset) -> Iterator[tuple[str, AnnotatedImage]]:
    """Read the pictures of a split, each with the words that name its labels."""
    for image in yolo.images:
        labels = label_path(image)
        try:
            size = image_size(image)
        except ImageError:
            size = (1, 1)  # nobody sees it: the picture is refused as soon as its size matters
        lines = read_text(labels).splitlines() if labels.is_file() else []
        things = [
            _thing(line.split(), size, yolo.names, f"{labels} line {number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        yield str(labels), AnnotatedImage(_name(image, yolo.root), things)


def _name(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)


def label_path(image: Path) -> Path:
    """Give the text file that belongs to a picture: under `labels/` where it is under `images/`, else beside it."""
    parts = list(image.with_suffix(".txt").parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            return Path(*parts[:at], "labels", *parts[at + 1 :])
    return image.with_suffix(".txt")


def _thing(words: list[str], size: Size, names: dict[int, str], where: str) -> Annotation:
    try:
        number, *parts = int(float(words[0])), *map(float, words[1:])
    except ValueError:
        raise UserError(f"{where} is no row of numbers", "a line is a class and four numbers, or an outline") from None
    if number not in names:
        raise UserError(f"{where} is of class {number}, which `names` does not list", "mend data.yaml")
    if len(parts) in (4, 5):  # a fifth number is a predicted score
        x, y, width, height = (part * size[i % 2] for i, part in enumerate(parts[:4]))
        return Annotation(names[number], [x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    if len(parts) < 6 or len(parts) % 2:
        raise UserError(f"{where} has {len(parts)} numbers behind its class", "a box has 4, an outline an even number")
    polygon = [part * size[i % 2] for i, part in enumerate(parts)]
    return Annotation(names[number], bounding_box([polygon]), (polygon,))


def write_yolo(folder: Path, images: Iterable[AnnotatedImage]) -> int:
    """Write `data.yaml` and `labels/`; return how many parts of outlines were left out.

    The file names of the pictures, whose sizes are known, start with `images/`. A line is an outline where all objects
    have one, else a box; of an outline with several parts, a line holds the largest.
    """
    images = list(images)
    things = [thing for about in images for thing in about.annotations]
    outlines = bool(things) and all(thing.polygons for thing in things)
    names = sorted({thing.label for thing in things})
    numbers = {name: number for number, name in enumerate(names)}
    for about in images:
        path = label_path(folder / about.file_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [_line(numbers[thing.label], thing, about.size or (1, 1), outlines) for thing in about.annotations]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    told: dict[str, Any] = {"path": ".", "train": "images", "val": "images", "nc": len(names), "names": names}
    (folder / LIST_NAMES[0]).write_text(yaml.safe_dump(told, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return sum(len(thing.polygons) - 1 for thing in things) if outlines else 0


def _line(number: int, thing: Annotation, size: Size, outlines: bool) -> str:
    if outlines:
        parts = max(thing.polygons, key=lambda polygon: _spread(bounding_box([polygon])))
    else:
        x1, y1, x2, y2 = thing.box
        parts = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    return " ".join([str(number), *(f"{part / size[i % 2]:.8g}" for i, part in enumerate(parts))])


def _spread(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
