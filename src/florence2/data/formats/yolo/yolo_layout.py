"""Layouts of YOLO datasets: the names of classes, the images of a split, and the label file of each image.

The names are in `data.yaml`, or in a list of names (`classes.txt`, `obj.names`). Images are in `images/` with labels in
`labels/` or `labelTxt/`, or have their label files beside them. An image without a label file has no objects.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from florence2.data.folders.image_locator import FileMatcher
from florence2.data.folders.listing import find_name, is_file, is_folder, read_lines, read_text, walk
from florence2.data.folders.sidecars import is_yolo_text
from florence2.data.formats.annotations import split_aliases
from florence2.errors import DatasetError

CONFIG_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
NAME_LISTS = ("obj.names", "classes.txt", "labels/classes.txt", "_darknet.labels")
_LABEL_FOLDERS = ("labels", "labeltxt")  # in lower case
_LIST_EXTENSIONS = (".txt", ".lst", ".list")
_NAMES_HINT = "list them, as in `names: [cat, dog]`"
_SPLITS = ("train", *split_aliases("val"), "test")


@dataclass(frozen=True)
class YoloDataset:
    """One split of a YOLO dataset: the folder that contains the images, each image with its labels, and the names.

    `num_keypoint_values` is the count of numbers after the box of a pose line. `unlisted` are labels without an image.
    """

    root: Path
    labels: dict[Path, Path]
    names: dict[int, str]
    num_keypoint_values: int = 0
    unlisted: Sequence[str] = ()


def find_yolo(folder: Path) -> Path | None:
    """Return `data.yaml` or another such file of a folder, a list of names that has labels, or DOTA's `labelTxt/`."""
    config = next((folder / name for name in CONFIG_NAMES if (folder / name).is_file()), None)
    if config := config or _other_config(folder):
        return config
    names = next((folder / name for name in NAME_LISTS if (folder / name).is_file()), None)
    has_labels = any((folder / name).is_dir() for name in ("labels", "obj_train_data"))
    if names is not None and not has_labels:
        listing = next(walk(folder, recursive=False))
        beside = (label_path(folder / name) for name in listing.images())
        has_labels = any(path.is_file() and is_yolo_text(read_text(path)) for path in beside)
    dota = next((path for path in _label_folders(folder) if path.name.lower() == "labeltxt"), None)
    return names if has_labels else dota


def _other_config(folder: Path) -> Path | None:
    """Return the only YAML file of a folder that has `names` and a split, whatever its name."""
    names = [name for name in next(walk(folder, recursive=False)).names if name.lower().endswith((".yaml", ".yml"))]
    found = [folder / name for name in names if _has_names(folder / name)]
    return found[0] if len(found) == 1 else None


def _has_names(path: Path) -> bool:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return False
    has_split = isinstance(config, dict) and any(isinstance(config.get(split), str | list) for split in _SPLITS)
    return has_split and "names" in config


def open_yolo(path: Path, split: str | None, dataset_dir: Path | None = None) -> YoloDataset:
    """List the images of a split with their labels: of the given one, else of `train`, else of the first that exists.

    `path` is `data.yaml`, a list of names, or a folder of labels that name their classes; `dataset_dir` replaces its
    folder as the place of the images.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        config = _read_config(path)
        names = config["names"]
        if any(config.get(name) for name in _SPLITS) or split is not None:
            sources = [_resolve_path(path, config, each, dataset_dir) for each in _split_paths(path, config, split)]
        else:  # supervision writes no paths
            sources = [_split_folder(dataset_dir or path.parent, split)]
    elif path.is_dir():
        config, names = {}, {}
        sources = [_split_folder(dataset_dir or path.parent, split)]
    else:
        config = {}
        names = {number: name.strip() for number, name in enumerate(read_lines(path)) if name.strip()}
        is_with_labels = path.parent.name == "labels" and path.name == "classes.txt"
        folder = dataset_dir or (path.parent.parent if is_with_labels else path.parent)
        sources = [_split_folder(folder, split)]
    images = [image for source in sources for image in _list_images(source, dataset_dir or path.parent)]
    if not images:
        raise DatasetError(f"{path} points to {sources[0]}, which contains no images", "correct the paths in it")
    label_folders = cache(_label_folders)
    labels = {image: _find_label(image, path.parent, label_folders) for image in images}
    if not any(is_file(label) for label in labels.values()):
        raise DatasetError(
            f"none of the {len(images):,} images of {path} has a label file, the first would be {labels[images[0]]}",
            "put the label files in `labels/` beside `images/`, or beside the images",
        )
    has_folders = all(is_folder(source) for source in sources)
    root = sources[0] if has_folders and len(sources) == 1 else dataset_dir or path.parent
    values = _num_keypoint_values(config.get("kpt_shape"), path)
    return YoloDataset(root, labels, names, values, _labels_without_image(labels) if has_folders else ())


def _num_keypoint_values(shape: Any, path: Path) -> int:
    """Return how many numbers the keypoints of a line are, from `kpt_shape: [number, dimensions]`; 0 without it."""
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(each, int) for each in shape):
        raise DatasetError(f"{path} has `kpt_shape: {shape}`, not two numbers", "write it as in `kpt_shape: [17, 3]`")
    return int(shape[0]) * int(shape[1])


def _read_config(path: Path) -> dict[str, Any]:
    """Read `data.yaml`; its `names` become text by number, also where YAML reads them as booleans."""
    try:
        text = read_text(path)
        config, as_text = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or config.get("names") in (None, ""):
        raise DatasetError(f"{path} has no `names` of classes", _NAMES_HINT)
    values, texts = config["names"], as_text["names"]
    if isinstance(values, list):
        values, texts = dict(enumerate(values)), {str(number): name for number, name in enumerate(texts)}
    if not isinstance(values, dict):
        raise DatasetError(f"{path} has `names` that are not a list", _NAMES_HINT)
    if invalid := [key for key in texts if not re.fullmatch(r"\d+", key)]:
        raise DatasetError(
            f"{path} has `names` with `{invalid[0]}` where the number of a class belongs",
            "write the number first, as in `0: cat`",
        )
    if invalid := [key for key, name in texts.items() if not isinstance(name, str)]:
        raise DatasetError(f"{path} has a class {invalid[0]} in `names` that is not a name", _NAMES_HINT)
    return {**config, "names": {int(key): texts[str(key)] for key, name in values.items() if name not in (None, "")}}


def _split_paths(path: Path, config: dict[str, Any], split: str | None) -> list[str]:
    candidates = split_aliases(split) if split else _SPLITS
    paths = next((config[each] for each in candidates if config.get(each)), None)
    if not paths:
        keys = ", ".join(f"`{key}`" for key in config)
        raise DatasetError(f"{path} has no split `{candidates[0]}`", f"pass a split among its keys {keys}")
    return [str(each) for each in (paths if isinstance(paths, list) else [paths])]


def _resolve_path(config_path: Path, config: dict[str, Any], name: str, dataset_dir: Path | None) -> Path:
    """Find a split's folder or list; some exporters write `../train/images` and mean `train/images`."""
    base = config_path.parent / str(config.get("path") or "")
    base = base if is_folder(base) else config_path.parent  # `path` is often a folder on another machine
    for folder in (base,) if dataset_dir is None else (dataset_dir, base):
        for each in (*_path_variants(name), *_last_parts(name)):
            if is_file(folder / each) or is_folder(folder / each):
                return folder / each
    if dataset_dir is not None and dataset_dir.is_dir():
        return dataset_dir
    hint = f"correct the paths in {config_path.name}, or pass the folder of the images as --dataset_dir"
    raise DatasetError(f"{base / name} does not exist", hint)


def _path_variants(name: str) -> list[str]:
    """Return a path of `data.yaml` without `../`, and with the aliases of its split: `valid/images`, `val/images`."""
    plain = name.removeprefix("../")
    parts = plain.split("/")
    variants = [
        "/".join([*parts[:at], alias, *parts[at + 1 :]])
        for at, part in enumerate(parts)
        for alias in split_aliases(part)[1:]
    ]
    return [name, plain, *variants]


def _last_parts(name: str) -> list[str]:
    """Return the ends of an absolute path of another machine: of `/kaggle/in/train/images` at least `train/images`."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    is_absolute = name.startswith("/") or re.match(r"[A-Za-z]:[/\\]", name) is not None
    return ["/".join(parts[start:]) for start in range(1, len(parts) - 1)] if is_absolute else []


def _split_folder(folder: Path, split: str | None) -> Path:
    """Return the folder or list of a split where no `data.yaml` names it."""
    for name in split_aliases(split) if split else _SPLITS:
        for path in (f"images/{name}", f"{name}/images", f"obj_{name}_data", f"{name}.txt", name):
            if (folder / path).exists():
                return folder / path
    if split is not None:
        raise DatasetError(f"{folder} has no split `{split}`", "pass a split that it has, or none")
    return folder / "images" if (folder / "images").is_dir() else folder


def _list_images(source: Path, folder: Path) -> list[Path]:
    """List the images of a folder, or those in a list; a list of another machine is matched to files of `folder`."""
    if is_folder(source):
        return [listing.path / name for listing in walk(source, recursive=True) for name in listing.images()]
    if source.suffix.lower() not in _LIST_EXTENSIONS:
        raise DatasetError(f"{source} is neither a folder nor a list of images", f"name it {source.name}.txt")
    matcher = FileMatcher(str(folder))

    def find(name: str) -> Path:
        # darknet's lists start with `data/`, which is the folder of the list
        for path in (source.parent / name, source.parent / name.removeprefix("data/")):
            if found := find_name(path.parent, path.name):
                return path.parent / found
        matched = folder / matcher.match(name, str(source))
        return matched if is_file(matched) else source.parent / name

    return [find(line.strip()) for line in read_lines(source) if line.strip()]


def label_path(image: Path) -> Path:
    """Return the label file of an image: in `labels/` where the image is in `images/`, else beside the image."""
    parts = list(image.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i].lower() == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :])
    return image.with_suffix(".txt")


def _label_folders(folder: Path) -> list[Path]:
    if not is_folder(folder):
        return []
    return sorted(path for path in folder.iterdir() if path.name.lower() in _LABEL_FOLDERS and path.is_dir())


def _find_label(image: Path, config_folder: Path, label_folders: Callable[[Path], list[Path]]) -> Path:
    """Return the label file of an image in any of the places where programs write it, else the default path."""
    candidates = [label_path(image)]
    parts = image.with_suffix(".txt").parts
    for i in (i for i in range(len(parts) - 2, -1, -1) if parts[i].lower() == "images"):
        candidates += [folder.joinpath(*parts[i + 1 :]) for folder in label_folders(Path(*parts[:i]))]
    candidates += [image.with_suffix(".txt"), config_folder / "labels" / f"{image.stem}.txt"]
    found = (path.with_name(name) for path in candidates if (name := find_name(path.parent, path.name)))
    return next(found, candidates[0])


def _labels_without_image(labels: dict[Path, Path]) -> list[str]:
    used = set(labels.values())
    folders = sorted({path.parent for path in used if is_file(path) and path.parent.name.lower() != "images"})
    texts = (folder / name for folder in folders for name in next(walk(folder, recursive=False)).names)
    return [str(path) for path in texts if path.suffix == ".txt" and path not in used and _has_labels(path)]


def _has_labels(path: Path) -> bool:
    try:
        return is_yolo_text(read_text(path))
    except DatasetError:
        return False
