"""Datasets of Hugging Face `datasets`: on the hub, in its cache, saved to disk, or in a parquet file.

Images stay encoded in the dataset until they are opened by `image.py`. No dataset runs code of its own.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from florence2.data.columns import (
    OTHER_COLUMNS,
    TASK_COLUMNS,
    ColumnMapping,
    DatasetRow,
    partition_samples,
    samples_from_rows,
)
from florence2.data.folders.dataset_features import (
    cast_encoded_images,
    find_image_column,
    name_classes,
    without_decoding,
)
from florence2.data.folders.foreign_jsonl import FOREIGN_COLUMNS, FOREIGN_TARGETS, translate_rows, unread_columns
from florence2.data.image import ImageError, ImageSource
from florence2.data.sample import ResolvedDataset, Sample
from florence2.data.tables import Row, check_arrow_files, dataset_errors, find_parquet_images, one_line
from florence2.errors import DatasetError, OptionError

_SAVED_SHARDS = 64  # shards of a saved dataset that is streamed
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_hub_id(name: str) -> bool:
    """Return whether a name could be a dataset on the hub: `user/name` or `name`."""
    return _HUB_ID.fullmatch(name) is not None


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder was written by `datasets`' `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def is_dataset_folder(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`, or has parquet files with images as on the hub."""
    if is_saved_dataset(folder):
        return True
    files = (next(iter(sorted(each.glob("*.parquet"))), None) for each in (folder, folder / "data"))
    first = next((file for file in files if file is not None), None)
    return first is not None and find_parquet_images(first) is not None


@dataclass(frozen=True, eq=False)
class DatasetImage:
    """An image within a dataset; a call returns its bytes or its file."""

    dataset: Any
    column: str
    index: int
    name: str

    def __call__(self) -> ImageSource:
        """Read the encoded image."""
        with dataset_errors(self.name):
            stored = self.dataset[self.index][self.column]
        if isinstance(stored, list):
            if len(stored) > 1:
                raise ImageError(f"{self.name} has {len(stored)} images", "write one image in each row")
            stored = stored[0] if stored else None
        if stored and stored.get("bytes"):
            return bytes(stored["bytes"])
        if stored and stored.get("path"):
            return Path(stored["path"])
        raise ImageError(f"{self.name} has no image")


def saved_samples(folder: Path, columns: ColumnMapping, split: str | None) -> ResolvedDataset:
    """Read a folder that `save_to_disk` wrote, or a downloaded dataset of the hub."""
    return _read_samples(_load_saved(folder), str(folder), columns, split)


def _load_saved(folder: Path) -> Any:
    import datasets

    with dataset_errors(str(folder)):
        if not is_saved_dataset(folder):
            return datasets.load_dataset(str(folder.resolve()))
        check_arrow_files(folder)
        return datasets.load_from_disk(str(folder))


def hub_samples(
    name: str, columns: ColumnMapping, split: str | None, *, revision: str | None, offline: bool
) -> ResolvedDataset:
    """Read a dataset from the hub or, `offline`, from its cache."""
    return _read_samples(_load(name, split, revision, offline), name, columns, split)


def stream_hub_dataset(name: str, split: str | None, *, offline: bool) -> Any:
    """Open an `IterableDataset`: on the hub, saved to disk, or a folder or file in one of its formats."""
    import datasets

    path = Path(name).expanduser()
    if path.is_dir() and is_saved_dataset(path):
        saved = select_split(_load_saved(path), name, split)
        with dataset_errors(str(path)):
            return saved.to_iterable_dataset(num_shards=max(min(len(saved), _SAVED_SHARDS), 1))
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    return _load(str(path.resolve()) if path.is_dir() else name, split, None, offline, streaming=True)


def _load(name: str, split: str | None, revision: str | None, offline: bool, streaming: bool = False) -> Any:
    import datasets

    if offline and revision:
        raise OptionError(
            f"offline, the revision of dataset `{name}` cannot be chosen", "remove the revision, or --offline"
        )
    with _offline(datasets) if offline else nullcontext():
        try:
            return datasets.load_dataset(name, split=split, revision=revision, streaming=streaming)
        except Exception as error:  # network, hub, parsers: each has errors of its own
            raise _load_error(name, split, offline or datasets.config.HF_HUB_OFFLINE, error) from None


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True  # there is no parameter for it
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _load_error(name: str, split: str | None, offline: bool, error: Exception) -> DatasetError:
    not_local = f"`{name}` is not a local file or folder, and as a dataset on the hub it"
    if isinstance(error, ValueError) and "unknown split" in str(error).lower():
        return DatasetError(f"dataset `{name}` has no split `{split}`: {one_line(error)}", "pass one of these")
    if offline:
        return DatasetError(f"{not_local} is not in the cache", "check the spelling, or run once without --offline")
    if isinstance(error, ConnectionError):
        return DatasetError(f"{not_local} cannot be reached", "check the spelling and the network, or pass a folder")
    if isinstance(error, FileNotFoundError):
        return DatasetError(
            f"{not_local} cannot be found: {one_line(error)}",
            "check the spelling; log in with `hf auth login` if it is private",
        )
    return DatasetError(f"dataset `{name}` cannot be loaded: {one_line(error)}")


def parquet_samples(path: Path, columns: ColumnMapping) -> ResolvedDataset:
    """Read a parquet file that contains its images."""
    return _read_samples(_load_parquet(path), str(path), columns, None)


def _load_parquet(path: Path) -> Any:
    with dataset_errors(str(path)):
        return import_module("datasets").Dataset.from_parquet(str(path))


def dataset_rows(
    name: str, columns: ColumnMapping, split: str | None, *, revision: str | None = None, offline: bool = False
) -> Iterator[DatasetRow]:
    """Read the rows of a dataset that is saved to disk, in a parquet file with its images, or on the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        dataset = _load_saved(path)
    elif path.is_file():
        dataset = _load_parquet(path)
    else:
        dataset = _load(name, split, revision, offline)
    part = cast_encoded_images(select_split(dataset, name, split))
    yield from translate_rows(_read_rows(part, name, columns, _check_columns(part, name, columns)), columns)


def _read_samples(dataset: Any, name: str, columns: ColumnMapping, split: str | None) -> ResolvedDataset:
    part = cast_encoded_images(select_split(dataset, name, split))
    column = _check_columns(part, name, columns)
    unread = dict.fromkeys(_unread(part, columns, column), len(part))
    rows = translate_rows(_read_rows(part, name, columns, column), columns)
    samples, skipped = partition_samples(samples_from_rows(rows, columns, ""))
    return ResolvedDataset(name, None, samples, skipped, unread_columns=unread)


def _check_columns(part: Any, name: str, columns: ColumnMapping) -> str:
    """Return the column of images; raise a DatasetError if there is none, or none of targets."""
    column = find_image_column(part, name, columns.image, has_lists=True)
    if columns.with_targets:
        require_text(part, name, columns)
    return column


def _unread(part: Any, columns: ColumnMapping, image_column: str) -> frozenset[str]:
    return unread_columns(columns)(tuple(part.features)) - {image_column}


def _read_rows(part: Any, name: str, columns: ColumnMapping, column: str) -> Iterator[DatasetRow]:
    stored = without_decoding(part.select_columns([column]).with_format(None), column)
    prefix = str(part.split) if part.split else "row"
    rows = name_classes(_rows_without_images(part, name, columns, column), part.features)
    unread = _unread(part, columns, column)
    for index, row in enumerate(rows):
        where = f"{name} {prefix}/{index}"
        image = Sample(f"{prefix}/{index}", DatasetImage(stored, column, index, where), "")
        yield DatasetRow(where, row, image, unread_columns=unread)


def select_split(dataset: Any, name: str, split: str | None) -> Any:
    """Select a split: the given one, else `train`, else the only one."""
    if not isinstance(dataset, dict):
        return dataset
    selected = split or ("train" if "train" in dataset else next(iter(dataset)) if len(dataset) == 1 else None)
    if selected not in dataset:
        splits = ", ".join(f"`{each}`" for each in dataset)
        problem = f"no split `{split}`" if split else "several splits and no `train`"
        raise DatasetError(
            f"dataset `{name}` has {problem}; it has {splits}", f"pass one, as in {name}:{next(iter(dataset))}"
        )
    return dataset[selected]


def require_text(part: Any, name: str, columns: ColumnMapping) -> None:
    """Raise a DatasetError if a dataset has no column of targets."""
    candidates = (columns.text,) if columns.text else (*columns.text_columns, "answer", *FOREIGN_TARGETS)
    if not any(column in part.features for column in candidates):
        listed = ", ".join(f"`{column}`" for column in part.features)
        missing = f"column `{columns.text}`" if columns.text else "column of captions"
        raise DatasetError(f"dataset `{name}` has no {missing}; it has {listed}", "pass its name as --text_column")


def _rows_without_images(part: Any, name: str, columns: ColumnMapping, image_column: str) -> Iterator[Row]:
    names = dict.fromkeys((*columns.text_columns, *TASK_COLUMNS, *OTHER_COLUMNS, *FOREIGN_COLUMNS))
    present = [name for name in names if name in part.features and name != image_column]
    with dataset_errors(name):
        yield from part.select_columns(present).with_format(None) if present else ({} for _ in range(len(part)))
