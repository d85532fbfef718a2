"""Datasets in the format of Hugging Face `datasets`: on the hub, in its cache, or saved to disk.

Pictures stay encoded in the dataset until they are opened, here, by our own decoder. No dataset runs code of its own.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from florence2.data import columns as metadata
from florence2.data.columns import ColumnMapping, samples_or_skipped
from florence2.data.image import ImageError, ImageSource
from florence2.data.sample import ResolvedDataset, Sample, Skipped
from florence2.data.tables import Row
from florence2.errors import UserError

_SHARDS = 64  # parts of a saved dataset that is streamed
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_hub_id(name: str) -> bool:
    """Tell whether a name could be a dataset's on the hub: `user/name` or `name`."""
    return _HUB_ID.fullmatch(name) is not None


def is_saved_dataset(folder: Path) -> bool:
    """Tell whether a folder was written by `datasets`' `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


@dataclass(frozen=True, eq=False)
class DatasetImage:
    """A picture within a dataset; called, it gives the bytes or the file."""

    dataset: Any
    column: str
    index: int
    name: str

    def __call__(self) -> ImageSource:
        """Read the encoded picture."""
        stored = self.dataset[self.index][self.column]
        if stored and stored.get("bytes"):
            return bytes(stored["bytes"])
        if stored and stored.get("path"):
            return Path(stored["path"])
        raise ImageError(f"{self.name} holds no picture")


def saved_samples(folder: Path, columns: ColumnMapping, split: str | None) -> ResolvedDataset:
    """Read a folder that `save_to_disk` wrote."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # arrow, json and datasets each have errors of their own
        raise UserError(f"{folder} is no dataset that can be read: {_said(error)}", "save it again") from None
    return _samples(dataset, str(folder), columns, split)


def hub_samples(
    name: str, columns: ColumnMapping, split: str | None, *, revision: str | None, offline: bool
) -> ResolvedDataset:
    """Read a dataset from the hub or, `offline`, from what was downloaded before."""
    return _samples(_loaded(name, split, revision, offline), name, columns, split)


def stream_hub_dataset(name: str, split: str | None, *, offline: bool) -> Any:
    """Open a dataset whose rows come one by one: on the hub, saved to disk, or a folder or file of its formats."""
    import datasets

    path = Path(name).expanduser()
    if path.is_dir() and is_saved_dataset(path):
        saved = select_split(datasets.load_from_disk(str(path)), name, split)
        return saved.to_iterable_dataset(num_shards=max(min(len(saved), _SHARDS), 1))
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    return _loaded(str(path) if path.is_dir() else name, split, None, offline, streaming=True)


def _loaded(name: str, split: str | None, revision: str | None, offline: bool, streaming: bool = False) -> Any:
    import datasets

    if offline and revision:
        raise UserError(
            f"offline, the revision of dataset `{name}` cannot be chosen", "leave the revision out, or --offline"
        )
    with _offline(datasets) if offline else _online():
        try:
            return datasets.load_dataset(name, split=split, revision=revision, streaming=streaming)
        except Exception as error:  # network, hub, parsers: each has errors of its own
            raise _unloaded(name, split, offline or datasets.config.HF_HUB_OFFLINE, error) from None


@contextmanager
def _online() -> Iterator[None]:
    yield


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True  # there is no parameter for it
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _unloaded(name: str, split: str | None, offline: bool, error: Exception) -> UserError:
    nowhere = f"`{name}` is no file or folder here, and as a dataset of the hub it"
    if isinstance(error, ValueError) and "unknown split" in str(error).lower():
        return UserError(f"dataset `{name}` has no split `{split}`: {_said(error)}", "name one of these")
    if offline:
        return UserError(f"{nowhere} was not downloaded before", "check the spelling, or leave --offline out once")
    if isinstance(error, ConnectionError):
        return UserError(f"{nowhere} cannot be reached", "check the spelling and the network, or name a local folder")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{nowhere} cannot be found: {_said(error)}", "check the spelling; private ones need a login")
    return UserError(f"dataset `{name}` cannot be loaded: {_said(error)}")


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def parquet_has_images(path: Path) -> bool:
    """Tell whether a parquet file holds the pictures themselves, as `datasets` writes them."""
    types = import_module("pyarrow").types
    try:
        schema = import_module("pyarrow.parquet").read_schema(path)
    except Exception:  # whatever is wrong with it shows when its rows are read
        return False
    return any(types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0 for field in schema)


def parquet_samples(path: Path, columns: ColumnMapping) -> ResolvedDataset:
    """Read a parquet file that holds its pictures."""
    import datasets

    dataset = datasets.Dataset.from_parquet(str(path))
    for column, feature in dataset.features.items():
        if isinstance(feature, dict) and "bytes" in feature:
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return _samples(dataset, str(path), columns, None)


def _samples(dataset: Any, name: str, columns: ColumnMapping, split: str | None) -> ResolvedDataset:
    part = select_split(dataset, name, split)
    column = find_image_column(part, name, columns.image)
    if columns.with_targets:
        require_text(part, name, columns)
    stored = without_decoding(part.select_columns([column]).with_format(None), column)
    prefix = str(part.split) if part.split else "row"
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for index, row in enumerate(_told(part, columns, column)):
        where = f"{name} {prefix}/{index}"
        image = Sample(f"{prefix}/{index}", DatasetImage(stored, column, index, where), "")
        for each in samples_or_skipped(row, where, columns, image):
            if isinstance(each, Sample):
                samples.append(each)
            else:
                skipped.append(each)
    return ResolvedDataset(name, None, samples, skipped)


def without_decoding(part: Any, column: str) -> Any:
    """Leave the pictures of a column as they are stored."""
    import datasets

    return part.cast_column(column, datasets.Image(decode=False))


def select_split(dataset: Any, name: str, split: str | None) -> Any:
    """Choose the split: the one asked for, else `train`, else the only one."""
    if not isinstance(dataset, dict):
        return dataset
    wanted = split or ("train" if "train" in dataset else next(iter(dataset)) if len(dataset) == 1 else None)
    if wanted not in dataset:
        has = ", ".join(f"`{each}`" for each in dataset)
        asked = f"no split `{split}`" if split else "several splits and no `train`"
        raise UserError(f"dataset `{name}` has {asked}; it has {has}", f"name one, as in {name}:{next(iter(dataset))}")
    return dataset[wanted]


def find_image_column(part: Any, name: str, asked: str | None) -> str:
    """Find the column that holds the pictures."""
    kinds = {column: type(feature).__name__ for column, feature in part.features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    column = asked or next(iter(images), "")
    if column in images:
        return column
    missing = f"column `{asked}` with pictures" if asked else "column of pictures"
    listed = ", ".join(f"`{column}` ({kind})" for column, kind in kinds.items())
    raise UserError(f"dataset `{name}` has no {missing}; it has {listed}", "name it with --image_column")


def require_text(part: Any, name: str, columns: ColumnMapping) -> None:
    """Refuse a dataset without a column of captions."""
    wanted = (columns.text,) if columns.text else (*metadata.TEXT_COLUMNS, "answer")
    if not any(column in part.features for column in wanted):
        listed = ", ".join(f"`{column}`" for column in part.features)
        missing = f"column `{columns.text}`" if columns.text else "column of captions"
        raise UserError(f"dataset `{name}` has no {missing}; it has {listed}", "name it with --text_column")


def _told(part: Any, columns: ColumnMapping, image: str) -> Iterator[Row]:
    """Read what the rows say, without their pictures."""
    text = (columns.text,) if columns.text else metadata.TEXT_COLUMNS
    names = dict.fromkeys((*text, *metadata.TASK_COLUMNS, *metadata.OTHER_COLUMNS))
    kept = [name for name in names if name in part.features and name != image]
    yield from part.select_columns(kept).with_format(None) if kept else ({} for _ in range(len(part)))
