"""Resolution of a path or name to samples: image folders, tables, annotation formats, tars and `datasets`."""

import glob
import os
from collections import Counter
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

from florence2.data import hub
from florence2.data.columns import METADATA_NAMES, ColumnMapping, count_columns, partition_samples, samples_from_rows
from florence2.data.folders.image_locator import DATASET_DIR_HINT
from florence2.data.folders.image_names import is_image_name
from florence2.data.folders.listing import display_path, no_images_error, walk
from florence2.data.folders.sidecars import Sidecars, captioned_images
from florence2.data.folders.table_rows import metadata_rows, table_rows, unread_table_hint
from florence2.data.formats.annotations import split_aliases
from florence2.data.formats.detect import find_source, resolve_source
from florence2.data.listed.listed_images import ListedImages
from florence2.data.listed.listed_samples import ListedSamples
from florence2.data.sample import ResolvedDataset, Sample, SampleKey
from florence2.data.stores.store_path import is_address
from florence2.data.streams.shard_readers import TarShards
from florence2.data.streams.tars.tar_source import TarSource, find_shards
from florence2.data.tables import find_parquet_images, is_table_name
from florence2.data.validate import OnMissing, raise_on_skipped
from florence2.errors import DatasetError
from florence2.model.tasks import split_prompt


@dataclass(frozen=True)
class DatasetOptions:
    """Options of reading a dataset, named as the flags are; `task` applies to rows without a task of their own.

    `keep_answers` keeps answers in pixels as the `reference` of samples, for metrics.
    """

    task: str
    dataset_dir: str | Path | None = None
    recursive: bool = False
    caption_extension: str = ".txt"
    keep_lines: bool = False
    on_missing: OnMissing = "error"
    image_column: str | None = None
    text_column: str | None = None
    split: str | None = None
    revision: str | None = None
    offline: bool = False
    keep_answers: bool = False


def resolve_dataset(spec: str | Path, options: DatasetOptions) -> ResolvedDataset:
    """Read samples with targets from a folder, a table, COCO, YOLO, VOC, LabelMe, tars or `datasets`.

    `spec` may end in `:split`. An image or target that is missing raises DatasetError, or is skipped and listed with
    `on_missing="skip"`; rows whose prediction failed are always skipped.
    """
    name, split = split_spec(os.fspath(spec), options.split)
    if is_address(name):
        raise DatasetError(f"{name} is not on this machine, and is read only as a stream", "pass `--streaming`")
    path = Path(name).expanduser()
    columns = ColumnMapping(
        options.task, image=options.image_column, text=options.text_column, keep_answers=options.keep_answers
    )
    if path.is_dir() and hub.is_dataset_folder(path):
        dataset = hub.saved_samples(path, columns, split)
    elif source := find_source(name, split, options.dataset_dir):
        dataset = resolve_source(source, columns)
    elif path.is_dir():
        sidecars = Sidecars.from_extension(options.caption_extension, options.keep_lines)
        dataset = _read_folder(split_folder(path, split, options.recursive), columns, sidecars, options.recursive)
    elif path.is_file():
        dataset = _read_table(path, columns, options.dataset_dir)
    elif may_be_on_hub(name):
        dataset = hub.hub_samples(name, columns, split, revision=options.revision, offline=options.offline)
    else:
        raise _absent_path_error(path)
    return raise_on_skipped(dataset, options.on_missing)


def resolve_images(
    spec: str | Path,
    *,
    task: str,
    input: str = "",  # noqa: A002
    recursive: bool = False,
    dataset_dir: str | Path | None = None,
) -> ResolvedDataset:
    """Find the images to predict: one image, a folder, a glob pattern, tars, or a table that lists images.

    A row of a table may have its own task and input. Rows with the same image, task and input become one sample.
    """
    parsed_task, prompt_input = split_prompt(task)
    columns = ColumnMapping(parsed_task.token, prompt_input or input, with_targets=False)
    path = Path(spec).expanduser()
    if path.is_dir() and hub.is_dataset_folder(path):
        return hub.saved_samples(path, columns, None)
    if path.is_dir():
        return _folder_images(path, columns, recursive)
    if path.is_file() and is_image_name(path.name):
        return ResolvedDataset(str(path), path.parent, [Sample(path.name, path, columns.task, columns.input)])
    if tars := find_shards(str(path)):
        return _tar_images(tars, columns)
    if path.suffix.lower() in (".json", ".xml", ".yaml", ".yml") and path.is_file() and find_source(str(path)):
        raise DatasetError(f"{path} has annotations, and is no list of images", "pass the folder of the images")
    if path.is_file():
        return _without_duplicates(_read_table(path, columns, dataset_dir))
    if glob.has_magic(str(path)):
        return _glob_images(str(path), columns)
    raise _absent_path_error(path)


def _tar_images(tars: TarSource, columns: ColumnMapping) -> ResolvedDataset:
    """Read the images of tars; of several, those that cannot be read are listed."""
    samples: list[Sample] = []
    failed: list[tuple[str, str]] = []
    ignored: list[tuple[str, str]] = []
    for index in range((shards := TarShards(tars, columns)).num_shards):
        try:
            rows = list(shards.reader(index)())
            samples += partition_samples(samples_from_rows(rows, columns, ""))[0]
            ignored += [(row.where, kind) for row in rows for kind in row.ignored_shapes]
        except DatasetError as error:
            if shards.num_shards == 1:
                raise
            failed.append((shards.shard_name(index), error.what))
    if not samples:
        raise DatasetError(failed[0][1] if failed else f"{tars.name} contains no images", "check the tars")
    return _without_duplicates(ResolvedDataset(tars.name, None, samples, failed_shards=failed, ignored_files=ignored))


def _without_duplicates(dataset: ResolvedDataset) -> ResolvedDataset:
    by_key: dict[SampleKey, Sample] = {}
    for sample in dataset.samples:
        by_key.setdefault(sample.key, sample)
    return replace(dataset, samples=list(by_key.values()))


def split_spec(spec: str, split: str | None) -> tuple[str, str | None]:
    """Separate `folder:split` or `user/name:split` into name and split, unless a file has that exact name."""
    if ":" not in spec or Path(spec).expanduser().exists():
        return spec, split
    before, _, after = spec.rpartition(":")
    if Path(before).expanduser().is_dir() or before.endswith((".yaml", ".yml")):
        return before, after
    before, _, after = spec.partition(":")
    return (before, after) if hub.is_hub_id(before) and "/" not in after else (spec, split)


def split_folder(folder: Path, split: str | None, recursive: bool = False) -> Path:
    """Return the folder of a split; without a split `train/`, if the folder has no images or metadata of its own."""
    if split is None:
        names = next(walk(folder, recursive=False)).names
        has_own = recursive or any(is_image_name(name) or name in METADATA_NAMES for name in names)
        train = folder / "train"
        has_train = not has_own and train.is_dir() and bool(next(walk(train, recursive=False)).images())
        return train if has_train else folder
    for name in split_aliases(split):
        if (folder / name).is_dir():
            return folder / name
    raise DatasetError(f"{display_path(folder)} has no folder `{split}`", "pass the folder that contains the images")


def may_be_on_hub(name: str) -> bool:
    """Return whether a name that is no local path may be a dataset on the hub."""
    is_local = is_image_name(name) or is_table_name(name) or ("/" in name and Path(name).parent.is_dir())
    return hub.is_hub_id(name) and not is_local


def _absent_path_error(path: Path) -> DatasetError:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    return DatasetError(f"{path} does not exist", f"did you mean {path.parent / close[0]}" if close else "")


def _read_folder(folder: Path, columns: ColumnMapping, sidecars: Sidecars, recursive: bool) -> ResolvedDataset:
    """Read the metadata tables of a folder, then the sidecars of the images that no table names."""
    listings = list(walk(folder, recursive))
    unread: Counter[str] = Counter()
    rows = count_columns(metadata_rows(folder, listings, columns), unread)
    samples, skipped = partition_samples(samples_from_rows(rows, columns, "fix its row, or put the image at this path"))
    known = {sample.id for sample in samples} | {row.id for row in skipped}
    if not known and not any(listing.images() for listing in listings):
        raise no_images_error(folder, recursive)
    captioned, uncaptioned = captioned_images(listings, task=columns.task, sidecars=sidecars, known=known)
    hint = unread_table_hint(listings[0])
    uncaptioned = [replace(image, hint=hint or image.hint) for image in uncaptioned]
    ignored = [file for listing in listings for file in listing.ignored_files()]
    found = samples + captioned, skipped + uncaptioned
    return ResolvedDataset(display_path(folder), folder, *found, ignored_files=ignored, unread_columns=unread)


def _read_table(path: Path, columns: ColumnMapping, dataset_dir: str | Path | None) -> ResolvedDataset:
    if not is_table_name(path.name):
        raise _not_a_table_error(path, columns)
    if path.suffix.lower() == ".parquet" and find_parquet_images(path):
        return hub.parquet_samples(path, columns)
    rows = table_rows(path, columns, dataset_dir)
    unread: Counter[str] = Counter()
    counted = count_columns(rows, unread)
    samples, skipped = partition_samples(samples_from_rows(counted, columns, DATASET_DIR_HINT))
    if not samples and not skipped:
        raise DatasetError(f"{path} contains no rows")
    root, samples = _with_common_root(samples, path.parent)
    return ResolvedDataset(str(path), root, samples, skipped, unread_columns=unread)


def _not_a_table_error(path: Path, columns: ColumnMapping) -> DatasetError:
    if columns.with_targets and is_image_name(path.name):
        return DatasetError(f"{path} is one image, not a dataset", f"pass its folder, {display_path(path.parent)}")
    if path.suffix.lower() in (".zip", ".rar", ".7z"):
        return DatasetError(f"{path} is an archive, which is not read", "unpack it, and pass its folder")
    expected = "a dataset" if columns.with_targets else "an image or a table of images"
    return DatasetError(f"{path} is not {expected}", "pass a table that ends in .jsonl, .csv, .tsv, .parquet or .json")


def _with_common_root(samples: list[Sample], table_folder: Path) -> tuple[Path, list[Sample]]:
    """Return the folder that all ids are relative to; where rows have several, their common parent with new ids."""
    paths = [(sample, sample.image) for sample in samples if isinstance(sample.image, Path)]
    roots = {path.parents[sample.id.count("/")] for sample, path in paths}
    if len(roots) <= 1:
        return next(iter(roots), table_folder), samples
    root = Path(os.path.commonpath([root.absolute() for root in roots]))
    return root, [replace(sample, id=path.absolute().relative_to(root).as_posix()) for sample, path in paths]


def _folder_images(folder: Path, columns: ColumnMapping, recursive: bool) -> ResolvedDataset:
    images = ListedImages(folder)
    ignored, failed = list[tuple[str, str]](), list[tuple[str, str]]()
    for listing in walk(folder, recursive, failed=failed):
        images.add_folder(listing.subpath, listing.images())
        ignored += listing.ignored_files()
    if not images and (tars := find_shards(str(folder))):
        return _tar_images(tars, columns)
    if not images:
        raise DatasetError(failed[0][1]) if failed else no_images_error(folder, recursive)
    samples = ListedSamples.of_step(images, columns.task, columns.input)
    return ResolvedDataset(display_path(folder), folder, samples, ignored_files=ignored, failed_folders=failed)


def _glob_images(pattern: str, columns: ColumnMapping) -> ResolvedDataset:
    root = Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    names = [name for name in sorted(glob.glob(pattern, recursive=True)) if is_image_name(name)]  # noqa: PTH207
    images = ListedImages(root)
    images.add_folder("", [path.relative_to(root).as_posix() for path in map(Path, names) if path.is_file()])
    if not images:
        raise DatasetError(
            f"no image matches {pattern}", "put the pattern in quotes, so that the shell does not expand it"
        )
    return ResolvedDataset(pattern, root, ListedSamples.of_step(images, columns.task, columns.input))
