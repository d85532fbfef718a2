"""The folder of an export, which appears complete or not at all."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from florence2.errors import OptionError, UserError
from florence2.files import WriteLock, hidden_name, require_utf8_path
from florence2.log import logger

EXPORT_FILE = "export.json"  # marks a folder that an export wrote, and that another one may replace
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def export_folder(path: Path, *, overwrite: bool, model_path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which becomes `path` when the block ends.

    An error in the block removes it, and leaves an older export at `path` as it is. Raises OptionError if `path`
    exists and may not be replaced, or holds the model that is exported.
    """
    path = path.expanduser().resolve()
    require_utf8_path(path)
    if path in (model_path.resolve(), *model_path.resolve().parents):
        raise OptionError(f"`{path}` holds the model that is exported", "pass another `--output_path`")
    with _readable_errors(path):
        created = _create_parents(path)
        try:
            with _exclusive(path):
                _recover(path)
                _require_replaceable(path, overwrite)
                staging = path.with_name(hidden_name(path.name, ".unfinished"))
                try:
                    staging.mkdir()
                    yield staging
                    _make_readable(staging)
                    _replace(path, staging)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
        except BaseException:
            _remove_empty(created)
            raise


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of a path; two exports to one folder would replace each other."""
    lock = WriteLock(path)
    try:
        if lock.is_acquired is False:
            raise OptionError(f"another export writes `{path}` now", "pass another `--output_path`, or wait for it")
        yield
    finally:
        if lock.is_acquired:
            lock.release()


def _recover(path: Path) -> None:
    """Clean up what a killed export left beside its folder."""
    staging, replaced = _beside(path)
    if staging.exists():
        logger.info(f"removing `{staging}`, which an interrupted export left")
        shutil.rmtree(staging)
    if replaced.exists() and not path.exists():
        logger.info(f"restoring `{path}`, which an interrupted export had moved away")
        replaced.rename(path)
    elif replaced.exists():
        shutil.rmtree(replaced)


def _require_replaceable(path: Path, overwrite: bool) -> None:
    """Raise OptionError for a folder with content, unless it is an export and `--overwrite` is set."""
    if not path.exists():
        return
    if not path.is_dir():
        raise OptionError(f"`{path}` is a file", "pass a folder as `--output_path`")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise OptionError(f"`{path}` exists already", "pass `--overwrite` to replace it, or another `--output_path`")
    if not (path / EXPORT_FILE).is_file():
        what = f"`{path}` is not an export (it has no `{EXPORT_FILE}`), and `--overwrite` would remove its files"
        raise OptionError(what, "pass another `--output_path`")


def _make_readable(folder: Path) -> None:
    """Give all files the rights of the folder: safetensors writes files that only their owner reads."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _replace(path: Path, staging: Path) -> None:
    """Put the new folder in the place of the old one, which is moved away first and removed last."""
    _, replaced = _beside(path)
    if path.exists():
        path.rename(replaced)
    staging.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def _beside(path: Path) -> tuple[Path, Path]:
    return (
        path.with_name(hidden_name(path.name, ".unfinished")),
        path.with_name(hidden_name(path.name, ".replaced")),
    )


def _create_parents(path: Path) -> list[Path]:
    """Create the missing parents of a folder, and return them, the deepest first."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """Convert errors of the file system to UserError; safetensors raises its own for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _no_space(path) from error
        raise UserError(
            f"`{path}` cannot be written: {error.strerror or error}", "pass another `--output_path`"
        ) from error
    except SafetensorError as error:
        if any(f"os error {number}" in str(error) for number in _DISK_FULL):
            raise _no_space(path) from error
        raise


def _no_space(path: Path) -> UserError:
    return UserError(
        f"there is no space for `{path}`; nothing was written", "free some space, or pass another `--output_path`"
    )
