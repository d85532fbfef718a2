"""Writing to stores: a file appears at its address complete, or not at all."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from florence2.data.stores.retries import retry, status_of
from florence2.data.stores.store_path import StorePath, open_filesystem

# Their files appear when they are complete; elsewhere a file is written under another name and renamed.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "hf", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"}


def upload_file(source: Path, target: StorePath) -> None:
    """Copy a local file to an address, with retries; an earlier file there is replaced."""
    filesystem, path = open_filesystem(target.address)

    def upload() -> None:
        if _protocols(filesystem) & _OBJECT_STORES:
            filesystem.put_file(str(source), path)
            return
        temporary = f"{path}.unfinished"
        filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        filesystem.put_file(str(source), temporary)
        filesystem.mv(temporary, path)

    retry(upload, str(target), "written")


def write_text(target: StorePath, text: str) -> None:
    """Write a small file, with retries."""
    filesystem, path = open_filesystem(target.address)

    def write() -> None:
        if not _protocols(filesystem) & _OBJECT_STORES:
            filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        filesystem.pipe_file(path, text.encode())

    retry(write, str(target), "written")


def create_text(target: StorePath, text: str) -> bool:
    """Write a small file unless there is one; return whether it was written.

    S3, Google, Azure and memory decide this themselves, by a conditional request; elsewhere another process could write
    between the question and the answer.
    """
    filesystem, path = open_filesystem(target.address)

    def create() -> bool:
        if not _protocols(filesystem) & _OBJECT_STORES:
            filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        try:
            filesystem.pipe_file(path, text.encode(), mode="create")
        except FileExistsError:
            return False
        except Exception as error:  # each file system has errors of its own
            if status_of(error) in (409, 412):
                return False
            if not isinstance(error, TypeError) and status_of(error) != 501:  # without conditional requests
                raise
            filesystem.pipe_file(path, text.encode())
        return True

    return retry(create, str(target), "written")


def remove_file(target: StorePath) -> None:
    """Remove a file, with retries; an absent one is none."""
    filesystem, path = open_filesystem(target.address)

    def remove() -> None:
        with suppress(FileNotFoundError):
            filesystem.rm_file(path)

    retry(remove, str(target), "removed")


def read_files(paths: Sequence[StorePath]) -> list[bytes]:
    """Read many small files of one store at once."""
    if not paths:
        return []
    filesystem, _ = open_filesystem(paths[0].address)
    plain = [open_filesystem(each.address)[1] for each in paths]
    content: Any = retry(lambda: filesystem.cat(plain), str(paths[0].parent))
    by_path = content if isinstance(content, dict) else {plain[0]: content}
    return [bytes(by_path[path]) for path in plain]


def _protocols(filesystem: Any) -> set[str]:
    protocol = filesystem.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)
