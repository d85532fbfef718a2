"""Layouts of COCO datasets: the annotation file of a split in a folder, and the folder of the images of a file."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from florence2.data.folders.image_locator import DATASET_DIR_HINT, FileMatcher
from florence2.data.folders.listing import Listing, display_path, find_name, walk
from florence2.data.formats.annotations import split_aliases
from florence2.data.formats.coco import is_coco
from florence2.errors import DatasetError

_KINDS = ("instances", "person_keypoints", "stuff", "captions")  # names of files, the preferred kind first
_KINDS_WITHOUT_OBJECTS = ("image_info", "panoptic", "labels_")  # `labels.json` is of FiftyOne
_SPLITS = ("train", *split_aliases("val"), "test")
_NAMES_TO_FIND = 100  # file names that are tried in each folder that may contain the images


def find_coco(folder: Path, split: str | None) -> Path | None:
    """Return the COCO file of a split in `annotations/` of a folder; without a split, of the first that it has."""
    inner = folder / "annotations"
    return _coco_of_split(next(walk(inner, recursive=False)), split) if inner.is_dir() else None


def find_coco_beside(listing: Listing, split: str | None) -> Path | None:
    """Return the COCO file of a split in a folder itself, such as `train.json`, or `labels.json` of FiftyOne.

    A folder with a caption beside an image is none.
    """
    if not any(name.lower().endswith(".json") for name in listing.names):
        return None
    stems = {name.rpartition(".")[0] for name in listing.images()}
    if any(name.lower().endswith((".txt", ".caption")) and name.rpartition(".")[0] in stems for name in listing.names):
        return None
    names = tuple(name for name in listing.names if Path(name).stem not in stems)
    return _coco_of_split(replace(listing, names=names), split)


def _coco_of_split(listing: Listing, split: str | None) -> Path | None:
    """Return the COCO file of a split in a folder; of the kinds of files for one split, objects come before captions.

    Raises DatasetError where several files of one kind fit.
    """
    inner, names = listing.path, listing.names
    stems = [Path(name).stem for name in names if name.lower().endswith(".json")]
    stems = [stem for stem in stems if not stem.startswith(_KINDS_WITHOUT_OBJECTS)]
    found: dict[str, list[Path]] = defaultdict(list)
    for stem in stems:
        path = next(inner / name for name in names if Path(name).stem == stem and name.lower().endswith(".json"))
        if is_coco(path):
            found[_split_of(stem, split)].append(path)
    order = [split] if split else [*_SPLITS[:1], "", *_SPLITS[1:]]
    paths = next((found[each] for each in order if each in found), [])
    panoptic = [name for name in names if name.startswith("panoptic") and name.lower().endswith(".json")]
    panoptic = [name for name in panoptic if split in (None, _split_of(Path(name).stem, split))]
    if not paths and panoptic:
        return inner / panoptic[0]  # whose reader says that it is not read
    best = min((_kind_rank(path.stem) for path in paths), default=0)
    chosen = [path for path in paths if _kind_rank(path.stem) == best]
    if len(chosen) > 1:
        listed = ", ".join(path.name for path in chosen)
        raise DatasetError(f"{inner} contains several COCO files: {listed}", "pass one of them itself as the dataset")
    return chosen[0] if chosen else None


def _kind_rank(stem: str) -> int:
    return next((rank for rank, kind in enumerate(_KINDS) if stem.startswith(kind)), len(_KINDS))


def _split_of(stem: str, split: str | None) -> str:
    """Return the split that the name of a file has, "" for none: `instances_Train2017` has `train`."""
    kind = next((kind for kind in _KINDS if stem.startswith(f"{kind}_")), "")
    rest = stem.removeprefix(f"{kind}_").lower()
    words = {rest, *(word.rstrip("0123456789") for word in re.split(r"[_.\-]", rest))}
    if split is not None:
        return split if words & {alias.lower() for alias in split_aliases(split)} else ""
    return next((name for name in _SPLITS if name in words), "")


def coco_image_folder(path: Path, names: Sequence[str]) -> Path:
    """Return the folder that file names are relative to: the COCO file's own, or one of a standard layout.

    One of `names`, the file names, must exist in the folder. Raises DatasetError where several subfolders have it.
    """
    split = path.stem.rpartition("_")[2]  # instances_train2017 -> train2017
    parent, root = path.parent, path.parent.parent
    folders = [parent, parent / "images", root / split, root / "images" / split, root / "images", parent / split]
    folders += [parent / "images" / split, parent / "data", root / "data"]  # `data/` of FiftyOne
    full_names = [name.replace("\\", "/") for name in names[:_NAMES_TO_FIND]]
    last_names = [name.rpartition("/")[2] for name in full_names]
    candidates = [(folder, each) for each in (full_names, last_names) for folder in folders]
    for folder, each in candidates:
        if any(find_name(folder, name) for name in each):
            return folder
    found = _subfolder(root / "images", last_names) or _subfolder(parent / "images", last_names)
    return found or _any_case(candidates) or parent


def _subfolder(images: Path, names: Sequence[str]) -> Path | None:
    """Return the folder below `images` that has one of the names."""
    below = walk(images, recursive=True) if images.is_dir() else ()
    found: dict[str, Path] = {}
    for listing in below:
        for name in set(names).intersection(listing.names):
            if found.setdefault(name, listing.path) != listing.path:
                what = f"`{name}` is in {display_path(found[name])} and in {display_path(listing.path)}"
                raise DatasetError(what, DATASET_DIR_HINT)
    return next(iter(found.values()), None)


def _any_case(candidates: Sequence[tuple[Path, Sequence[str]]]) -> Path | None:
    """Return the first folder that has one of the names in another letter case."""
    matchers = {folder: FileMatcher(str(folder)) for folder, _ in candidates}
    found = (folder for folder, names in candidates if any(matchers[folder].find(name.split("/")) for name in names))
    return next(found, None)
