"""Here is a path or a name: find the pictures it means, or say what it might have meant."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from pathlib import Path

from florence2.data import hub
from florence2.data.columns import (
    METADATA_NAMES,
    ColumnMapping,
    ImageLocator,
    LocatedImage,
    confine_to,
    samples_from_table,
)
from florence2.data.folder import (
    Listing,
    Sidecars,
    captioned_images,
    display_path,
    folder_images,
    no_images_error,
    walk,
)
from florence2.data.formats.annotations import split_aliases
from florence2.data.formats.detect import find_source, resolve_source
from florence2.data.formats.foreign_jsonl import translate_rows
from florence2.data.formats.shards import find_shards
from florence2.data.image import is_image_name
from florence2.data.sample import ResolvedDataset, Sample, SampleKey, Skipped
from florence2.data.tables import Row, is_table_name, read_rows
from florence2.data.validate import OnMissing, raise_on_skipped
from florence2.errors import UserError
from florence2.model.tasks import split_prompt

_NAME_FOLDER = "name the folder of the pictures with --dataset_dir"


def resolve_dataset(
    spec: str | Path,
    *,
    task: str,
    dataset_dir: str | Path | None = None,
    recursive: bool = False,
    caption_extension: str = ".txt",
    keep_lines: bool = False,
    missing: OnMissing = "error",
    image_column: str | None = None,
    text_column: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> ResolvedDataset:
    """Find samples with targets: in a folder, a table of rows, COCO, YOLO, VOC, LabelMe, tars, or `datasets`.

    `spec` may end in `:split`. `task` is asked where a row names none. What cannot be learnt from is an error, or with
    `missing="skip"` is left out and listed; rows whose prediction failed are always left out.
    """
    name, split = split_spec(os.fspath(spec), split)
    path = Path(name).expanduser()
    columns = ColumnMapping(task, image=image_column, text=text_column)
    if path.is_dir() and hub.is_saved_dataset(path):
        found = hub.saved_samples(path, columns, split)
    elif source := find_source(name, split, dataset_dir):
        found = resolve_source(source, columns)
    elif path.is_dir():
        sidecars = Sidecars.of(caption_extension, keep_lines)
        found = _folder(_split_folder(path, split), columns, sidecars, recursive)
    elif path.is_file():
        found = _table(path, columns, dataset_dir)
    elif _may_be_on_hub(name):
        found = hub.hub_samples(name, columns, split, revision=revision, offline=offline)
    else:
        raise _nothing_there(path)
    return raise_on_skipped(found, missing)


def resolve_images(
    spec: str | Path,
    *,
    task: str,
    input: str = "",  # noqa: A002
    recursive: bool = False,
    dataset_dir: str | Path | None = None,
) -> ResolvedDataset:
    """Find pictures to ask about: one picture, a folder, a glob pattern, tars, or a table that lists pictures.

    A row of a table may name its own task and input. A question that is listed twice is asked once.
    """
    asked, said = split_prompt(task)
    said = said or input
    path = Path(spec).expanduser()
    if path.is_dir():
        return folder_images(path, task=asked.token, input=said, recursive=recursive)
    if path.is_file() and is_image_name(path.name):
        return ResolvedDataset(str(path), path.parent, [Sample(path.name, path, asked.token, said)])
    columns = ColumnMapping(asked.token, said, with_targets=False)
    if tars := find_shards(str(path)) if path.suffix == ".tar" else None:
        return _once(resolve_source(tars, columns))
    if path.is_file():
        return _once(_table(path, columns, dataset_dir))
    if glob.has_magic(str(path)):
        return _matching(str(path), asked.token, said)
    raise _nothing_there(path)


def _once(found: ResolvedDataset) -> ResolvedDataset:
    once: dict[SampleKey, Sample] = {}
    for sample in found.samples:
        once.setdefault(sample.key, sample)
    return ResolvedDataset(found.source, found.root, list(once.values()))


def split_spec(spec: str, split: str | None) -> tuple[str, str | None]:
    """Part `folder:split` or `user/name:split`, unless there is a file of that very name."""
    if ":" not in spec or Path(spec).expanduser().exists():
        return spec, split
    before, _, after = spec.rpartition(":")
    if Path(before).expanduser().is_dir() or before.endswith((".yaml", ".yml")):
        return before, after
    before, _, after = spec.partition(":")
    return (before, after) if hub.is_hub_id(before) and "/" not in after else (spec, split)


def _split_folder(folder: Path, split: str | None) -> Path:
    if split is None:
        return folder
    for name in split_aliases(split):
        if (folder / name).is_dir():
            return folder / name
    raise UserError(f"{display_path(folder)} has no folder `{split}`", "name the folder that holds the pictures")


def _may_be_on_hub(name: str) -> bool:
    local = is_image_name(name) or is_table_name(name) or ("/" in name and Path(name).parent.is_dir())
    return hub.is_hub_id(name) and not local


def _nothing_there(path: Path) -> UserError:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    return UserError(f"{path} does not exist", f"did you mean {path.parent / close[0]}" if close else "")


def _folder(folder: Path, columns: ColumnMapping, sidecars: Sidecars, recursive: bool) -> ResolvedDataset:
    """Read the tables that describe a folder, then the sidecars of the pictures that no table names."""
    listings = list(walk(folder, recursive))
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for listing in listings:
        for name in METADATA_NAMES:
            if name in listing.names:
                _sort_out(_described(folder, listing, name, columns), samples, skipped)
    known = {sample.id for sample in samples} | {each.id for each in skipped}
    if not known and not any(listing.images() for listing in listings):
        raise no_images_error(folder, recursive)
    more, without = captioned_images(listings, task=columns.task, sidecars=sidecars, known=known)
    mend = _unread_table(listings[0])
    without = [replace(each, hint=mend or each.hint) for each in without]
    return ResolvedDataset(display_path(folder), folder, samples + more, skipped + without)


def _described(folder: Path, listing: Listing, name: str, columns: ColumnMapping) -> Iterator[Sample | Skipped]:
    inside = confine_to(folder, "a table names pictures in its own folder")

    def locate(_: Row, image: str, where: str) -> LocatedImage:
        return inside(os.path.join(listing.subpath, image), where)  # noqa: PTH118 - relative on purpose

    rows = translate_rows(read_rows(listing.path / name), columns, locate)
    return samples_from_table(rows, columns, locate, "mend its row, or put the picture there")


def _unread_table(listing: Listing) -> str:
    """Guess at a table that lies in the folder under a name nobody looks for."""
    for name in listing.names:
        path = listing.path / name
        if name.lower().startswith("metadata.j") and name not in METADATA_NAMES and name != "metadata.json":
            return f"rename {path} to metadata.jsonl"
        if is_table_name(name) and name not in METADATA_NAMES:
            return f"name {path} itself as the dataset"
    return ""


def _sort_out(found: Iterable[Sample | Skipped], samples: list[Sample], skipped: list[Skipped]) -> None:
    for each in found:
        if isinstance(each, Sample):
            samples.append(each)
        else:
            skipped.append(each)


def _table(path: Path, columns: ColumnMapping, dataset_dir: str | Path | None) -> ResolvedDataset:
    if not is_table_name(path.name):
        raise _no_list(path, columns)
    if path.suffix.lower() == ".parquet" and hub.parquet_has_images(path):
        return hub.parquet_samples(path, columns)
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    locate = _beside(path.parent) if dataset_dir is None else _within(Path(dataset_dir).expanduser())
    rows = translate_rows(read_rows(path), columns, locate)
    _sort_out(samples_from_table(rows, columns, locate, _NAME_FOLDER), samples, skipped)
    if not samples and not skipped:
        raise UserError(f"{path} holds no rows")
    root, samples = _rooted(samples, path.parent)
    return ResolvedDataset(str(path), root, samples, skipped)


def _no_list(path: Path, columns: ColumnMapping) -> UserError:
    if columns.with_targets and is_image_name(path.name):
        return UserError(f"{path} is one picture, not a dataset", f"name its folder, {display_path(path.parent)}")
    kind = "a dataset" if columns.with_targets else "a picture, nor a list of pictures"
    return UserError(f"{path} is not {kind}", "lists end in .jsonl, .csv, .parquet or .json")


def _within(folder: Path) -> ImageLocator:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "--dataset_dir names the folder of the pictures")
    inside = confine_to(folder, _NAME_FOLDER)
    return lambda _, image, where: inside(image, where)


def _beside(folder: Path) -> ImageLocator:
    """Look where a row's `image_dir` leads, as predictions write it, then beside the list itself."""
    beside = confine_to(folder, _NAME_FOLDER)

    @cache
    def led(lead: str) -> Callable[[str, str], LocatedImage] | None:
        root = Path(os.path.normpath(folder.resolve() / lead))
        return confine_to(root, _NAME_FOLDER) if root.is_dir() else None

    def locate(row: Row, image: str, where: str) -> LocatedImage:
        lead = row.get("image_dir")
        if isinstance(lead, str) and lead and (inside := led(lead)):
            located = inside(image, where)
            if located.exists:
                return located
        return beside(image, where)

    return locate


def _rooted(samples: list[Sample], beside: Path) -> tuple[Path, list[Sample]]:
    """Find the one folder that all ids are relative to; where there are several, the one that holds them all."""
    paths = [(sample, sample.image) for sample in samples if isinstance(sample.image, Path)]
    roots = {path.parents[sample.id.count("/")] for sample, path in paths}
    if len(roots) <= 1:
        return next(iter(roots), beside), samples
    root = Path(os.path.commonpath([root.absolute() for root in roots]))
    return root, [replace(sample, id=path.absolute().relative_to(root).as_posix()) for sample, path in paths]


def _matching(pattern: str, task: str, said: str) -> ResolvedDataset:
    steady = Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if is_image_name(name)]  # noqa: PTH207
    samples = [Sample(path.relative_to(steady).as_posix(), path, task, said) for path in paths if path.is_file()]
    if not samples:
        raise UserError(f"no picture matches {pattern}", "put the pattern in quotes, so that the shell leaves it alone")
    return ResolvedDataset(pattern, steady, samples)
