"""The output of `florence2 predict` as a dataset: a folder of a job in shards, or one file in a store."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.folders.table_rows import table_rows
from florence2.data.stores.store_path import AnyPath, StorePath, is_address, list_files, to_path
from florence2.data.streams.outputs.stored_images import StoredImages
from florence2.data.streams.shard_paths import relative_names
from florence2.data.streams.table_shards import remote_rows
from florence2.data.tables import is_table_name
from florence2.errors import DatasetError
from florence2.files import parse_json
from florence2.log import logger

RUN_FOLDER = "_run"


@dataclass(frozen=True)
class JobOutputs:
    """Tables of predictions, whose images are files, members of tars, or at addresses."""

    name: str
    paths: tuple[AnyPath, ...]
    root: None = None

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]:
        """Read the rows of all tables with their images."""
        for path in self.paths:
            if isinstance(path, StorePath):
                yield from remote_rows(path, columns)
            else:
                yield from _local_rows(path, columns)


def _local_rows(path: Path, columns: ColumnMapping) -> Iterator[DatasetRow]:
    stored = StoredImages(path.parent)
    for row in table_rows(path, columns, None):
        name = str(row.row.get("file_name") or "")
        image = stored.find(row.row, name) if name and not row.exists and row.error is None else None
        yield row if image is None else row._replace(image=replace(row.image, id=name, image=image), exists=True)


def find_job_outputs(spec: str) -> JobOutputs | None:
    """Return the finished outputs of a job at a folder, or a table at an address; None for anything else."""
    path = to_path(spec)
    if isinstance(path, StorePath) and is_table_name(path.name) and path.is_file():
        return JobOutputs(spec, (path,))
    job_file = path / f"{RUN_FOLDER}/job.json"
    if (isinstance(path, StorePath) and path.suffix.lower() == ".tar") or not job_file.is_file():
        return None
    shards, suffix = parse_shard_names(job_file.read_bytes()), output_suffix(path)
    if shards is None:
        raise DatasetError(f"{job_file} is damaged", "run `florence2 predict` again, which writes it")
    in_place = set(list_names(path))
    names = [f"{name}{suffix}" for name in shards if f"{name}{suffix}" in in_place]
    if not names:
        raise DatasetError(f"no shard of {path} is done", "run `florence2 predict` again, or wait until it writes one")
    if len(names) < len(shards):
        logger.warning(f"{path}: {len(names):,} of {len(shards):,} shards are done, and only these are read")
    return JobOutputs(spec, tuple(path / name for name in names))


def parse_shard_names(content: bytes) -> list[str] | None:
    """Return the names of the shards in the file about a job; None where it is damaged."""
    try:
        names = parse_json(content)["shards"]
    except (ValueError, KeyError, TypeError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def output_suffix(folder: AnyPath) -> str:
    """Return the extension of the outputs in a folder: a name such as `captions.parquet/` is a folder of Parquet."""
    return ".parquet" if folder.suffix.lower() == ".parquet" else ".jsonl"


def list_names(folder: AnyPath) -> list[str]:
    """List all files below a folder by their paths within it."""
    files: list[Any]
    if isinstance(folder, StorePath):
        files = list(list_files(folder, recursive=True))
    else:
        files = [path for path in folder.rglob("*") if path.is_file()]
    return relative_names(files, folder) if files else []


def is_job_folder(spec: str) -> bool:
    """Return whether a local folder is the output of a job in shards."""
    return not is_address(spec) and (Path(spec).expanduser() / RUN_FOLDER / "job.json").is_file()
