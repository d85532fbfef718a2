"""The sharded source of a path, an address, a pattern or a dataset's name: of samples to train on, or of images.

Shards are tars, tables, blocks of images, or those of `datasets`, local or in a store.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from florence2.data import hub
from florence2.data.columns import ColumnMapping
from florence2.data.folders.dataset_features import cast_encoded_images, find_image_column, without_decoding
from florence2.data.folders.image_names import is_image_name
from florence2.data.folders.listing import display_path, file_names, walk
from florence2.data.resolve import split_spec
from florence2.data.stores.store_path import AnyPath, StorePath, is_address, list_files, to_path
from florence2.data.streams.image_blocks import ImageBlocks
from florence2.data.streams.shard_paths import common_folder, expand_pattern, has_pattern, relative_names
from florence2.data.streams.shard_readers import DatasetShards, ShardedSource, TarShards
from florence2.data.streams.table_shards import TableShards
from florence2.data.streams.tars.tar_source import TarSource, find_shards, reject_compressed
from florence2.data.tables import find_parquet_images, is_table_name
from florence2.errors import DatasetError
from florence2.log import count_kinds, logger

_STREAMABLE_FILES = ("*.parquet", "metadata.*")  # a folder with one of these can be streamed by `datasets`
_PREFERENCE = ("tar", "image", "parquet", "table")  # the first kind in a folder is read


def find_sharded_source(spec: str, columns: ColumnMapping, *, offline: bool = False) -> ShardedSource:
    """Find a source to train on that can be streamed by its path or name, which may end in `:split`."""
    if is_address(spec):
        return find_image_shards(spec, columns)
    name, split = split_spec(spec, None)
    path = Path(name).expanduser()
    if tars := None if hub.is_saved_dataset(path) else find_shards(name):
        return TarShards(tars, columns)
    if path.is_file() and not (path.suffix.lower() == ".parquet" and find_parquet_images(path)):
        raise DatasetError(f"{path} is a table, which cannot be streamed", "remove `--streaming`")
    is_streamable = hub.is_saved_dataset(path) or any(next(path.rglob(name), None) for name in _STREAMABLE_FILES)
    if path.is_dir() and not is_streamable:
        raise DatasetError(
            f"{display_path(path)} contains neither tars nor parquet files", "remove `--streaming` to list its images"
        )
    if not path.exists() and (is_table_name(name) or not hub.is_hub_id(name)):
        raise DatasetError(f"{path} does not exist", "pass a dataset on the hub as `user/name`")
    return _stream_dataset(name, split, columns, offline)


def _stream_dataset(name: str, split: str | None, columns: ColumnMapping, offline: bool = False) -> DatasetShards:
    dataset = hub.select_split(hub.stream_hub_dataset(name, split, offline=offline), name, split)
    dataset = cast_encoded_images(dataset if dataset.features else dataset._resolve_features())
    column = find_image_column(dataset, name, columns.image, has_lists=True)
    if columns.with_targets:
        hub.require_text(dataset, name, columns)
    return DatasetShards(name, without_decoding(dataset, column), columns, column)


def find_image_shards(spec: str, columns: ColumnMapping, *, recursive: bool = False) -> ShardedSource:
    """Find shards by a path, an address, a pattern or the name of a dataset on the hub."""
    path = to_path(spec)
    reject_compressed(spec)
    if isinstance(path, Path) and path.is_dir() and hub.is_saved_dataset(path):
        return _stream_dataset(spec, None, columns)
    if has_pattern(spec) and not (isinstance(path, Path) and path.exists()):
        matches = expand_pattern(spec)
        if matches or not (isinstance(path, StorePath) and (path.is_file() or path.is_dir())):
            return _shards_of(spec, [each for each in matches if _kind(each)], columns)
    if isinstance(path, Path) and not path.exists():
        if not is_hub_dataset(spec):
            raise DatasetError(f"{path} does not exist", "check the path, or pass a dataset on the hub as `user/name`")
        return _stream_dataset(*split_spec(spec, None), columns)
    if _is_folder(path, spec):
        return _folder_shards(spec, path, columns, recursive)
    if not _kind(path):
        raise DatasetError(f"{path} is not an image, a tar or a table", "pass a .tar, .parquet, .jsonl or image file")
    return _shards_of(spec, [path], columns)


def is_streamed(spec: str) -> bool:
    """Return whether images are read shard by shard: in a store, on the hub, or in several tables."""
    if is_address(spec) or is_hub_dataset(spec):
        return True
    path = Path(spec).expanduser()
    if has_pattern(spec) and not path.exists():
        return is_table_name(spec)
    if path.is_dir() and not hub.is_saved_dataset(path):
        has_tables = False
        for name in file_names(path):  # up to the first image of perhaps a million
            kind = _kind(Path(name))
            if kind in ("tar", "image"):
                return False
            has_tables |= kind == "parquet"
        return has_tables
    return False


def is_hub_dataset(spec: str) -> bool:
    """Return whether a name is `user/name` or `user/name:split`, and no local path."""
    name = spec.partition(":")[0]
    path = Path(spec).expanduser()
    is_local = path.exists() or path.parent.is_dir() or _kind(path) != "" or has_pattern(spec)
    return "/" in name and hub.is_hub_id(name) and not is_local


def _is_folder(path: AnyPath, spec: str) -> bool:
    return spec.endswith("/") or (not _kind(path) and path.is_dir()) or (isinstance(path, Path) and path.is_dir())


def _kind(path: AnyPath) -> str:
    """Return what a file holds by its extension; "" for other files."""
    suffix = path.suffix.lower()
    if suffix in (".tar", ".parquet"):
        return suffix[1:]
    return "image" if is_image_name(path.name) else "table" if is_table_name(path.name) else ""


def _folder_shards(spec: str, folder: AnyPath, columns: ColumnMapping, recursive: bool) -> ShardedSource:
    """Read the tars of a folder, else its images, else its tables."""
    files = list(_files(folder, recursive))
    kinds = Counter(_kind(each) for each in files)
    chosen = next((kind for kind in _PREFERENCE if kinds[kind]), None)
    if chosen is None:
        hint = "" if recursive else ", or pass --recursive for its subfolders"
        raise DatasetError(f"{folder} contains no images, tars or tables", f"check the address{hint}")
    ignored = [each.suffix or "without an extension" for each in files if _kind(each) != chosen]
    if ignored:
        logger.info(f"{folder}: {kinds[chosen]:,} {chosen} files are read; not read: {count_kinds(ignored)}")
    return _shards_of(spec, [each for each in files if _kind(each) == chosen], columns, folder)


def _files(folder: AnyPath, recursive: bool) -> Iterator[AnyPath]:
    if isinstance(folder, StorePath):
        yield from (each for each in list_files(folder, recursive=recursive) if not each.name.startswith("."))
        return
    for listing in walk(folder, recursive):
        yield from (listing.path / name for name in listing.names)


def _shards_of(spec: str, paths: list[AnyPath], columns: ColumnMapping, root: AnyPath | None = None) -> ShardedSource:
    kinds = sorted({"table" if (kind := _kind(path)) == "parquet" else kind for path in paths})
    if not paths:
        raise DatasetError(f"no image, tar or table matches {spec}", "check the pattern, and put it in quotes")
    if len(kinds) > 1:
        raise DatasetError(f"{spec} matches files of several kinds: {' and '.join(kinds)}", "pass one kind at a time")
    if kinds == ["tar"]:
        return TarShards(TarSource(spec, tuple(paths)), columns)
    if kinds == ["table"]:
        return TableShards(spec, tuple(paths), columns)
    root = root or common_folder(paths)
    images = zip(relative_names(paths, root), map(str, paths), strict=True)
    return ImageBlocks(spec, str(root).rstrip("/"), tuple(images), columns)
