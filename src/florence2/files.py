"""Atomic writing of files, a lock against a second writer, and valid JSON."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from florence2.distributed import is_main_process
from florence2.errors import DatasetError, OptionError

_MAX_NAME_BYTES = 255
_LOCKED_ERRORS = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}


@contextmanager
def atomic_write(path: Path, mode: str = "w", *, sync: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` when the block ends: `path` is the old file or the new one, complete.

    An error in the block leaves `path` as it is. `mode` is `"w"` (UTF-8; a lone surrogate, of a file name that is not
    UTF-8, becomes its escape) or `"wb"`. With `sync`, the content is on the disk before it replaces `path`.
    """
    temporary = path.with_name(hidden_name(path.name, ".unfinished"))
    try:
        encoding, newline, errors = (None, None, None) if "b" in mode else ("utf-8", "\n", "backslashreplace")
        with temporary.open(mode, encoding=encoding, newline=newline, errors=errors) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


DEVICE_ERRORS = {  # of a disk that fails, and of a file system whose server cannot be reached
    getattr(errno, name)
    for name in ("EIO", "ENODEV", "ENXIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH")
    if hasattr(errno, name)
}


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Add the name of a file to an OSError that has none, such as that of a write."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


_FULL_DISK = {errno.ENOSPC: "(os error 28)", errno.EDQUOT: "(os error 122)"}  # as libraries in Rust name them
_ALMOST_FULL = 2**20  # bytes


@contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Raise an OSError for a full disk, for which safetensors, tokenizers and torch have exceptions of their own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = next((number for number, text in _FULL_DISK.items() if text in str(error)), None)
        if number is None and isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < _ALMOST_FULL:
            number = errno.ENOSPC  # torch names no reason
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error


def cache_folder() -> Path | None:
    """Return the folder of files that may be lost; None where the user has no home.

    It is `$FLORENCE2_CACHE`, else `florence2` in `$XDG_CACHE_HOME` or `~/.cache`; it may be absent or read-only.
    """
    if own := os.environ.get("FLORENCE2_CACHE"):
        return Path(own).absolute()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with contextlib.suppress(RuntimeError):
        folder = folder.expanduser()
    return folder / "florence2" if folder.is_absolute() else None


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file to be written below a folder; `name` may come from a file that anybody made.

    Raises DatasetError for a name that leads out of the folder.
    """
    path = Path(name)
    if path.drive or path.root or ".." in path.parts:
        raise DatasetError(f"the name `{name}` leads out of the folder {folder}", "rename the image in its dataset")
    return folder / name


def require_utf8_path(path: Path) -> None:
    """Raise OptionError for the folder of a checkpoint whose name the libraries of checkpoints cannot open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        what = f"the name of the folder `{path}` is not UTF-8, which tokenizers and safetensors need"
        raise OptionError(what, "rename it, or pass another folder") from None


def hidden_name(name: str, suffix: str) -> str:
    """Return a name for a file beside another one; file systems limit names to 255 bytes."""
    hidden = f".{name}{suffix}"
    if len(os.fsencode(hidden)) <= _MAX_NAME_BYTES:
        return hidden
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}{suffix}"


# As in `ntpath.isreserved` of Python 3.13.
_RESERVED_NAME = re.compile(
    r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9¹²³]) *(\.|$)', re.IGNORECASE
)


def reserved_part(name: str) -> str:
    """Return the first part of a path that Windows does not take as a file name, such as `a:b.jpg`; "" without one."""
    parts = name.replace("\\", "/").split("/")
    return next((part for part in parts if part not in (".", "..") and _RESERVED_NAME.search(part)), "")


def has_case_sensitive_names(folder: Path) -> bool:
    """Return whether two names in a folder that differ by case alone are two files, unlike on Windows and Macs."""
    probe = folder / f".florence2-case-{os.getpid()}"
    probe.touch()
    try:
        return not probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink()


class WriteLock:
    """A lock that one process holds while it writes a file; the system releases it when the process ends.

    The lock is on a hidden file beside `path`, because `path` itself may be replaced. `is_acquired` is False where
    another process holds it, None where the file system cannot lock. `left_at` is the time (of the file system) since
    when the file lies there, if a process left it that was killed or failed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(hidden_name(path.name, ".lock"))
        self.left_at: float | None = None
        with contextlib.suppress(OSError):
            self.left_at = self._path.stat().st_mtime
        self._descriptor: int | None = None
        self.is_acquired: bool | None = self._acquire()

    def release(self, *, is_complete: bool = True) -> None:
        """Release the lock and remove its file, which stays if the work is not complete (`left_at`)."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if sys.platform == "win32":  # it removes no open file, neither ours nor that of the next owner
            os.close(descriptor)
        if is_complete:
            with contextlib.suppress(OSError):
                self._path.unlink()
        if sys.platform != "win32":
            os.close(descriptor)

    def _acquire(self) -> bool | None:
        while True:
            descriptor: int | None = None
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
                _lock_without_waiting(descriptor)
                if self._is_current(descriptor):
                    self._descriptor = descriptor
                    return True
                os.close(descriptor)  # its owner removed it in between
            except OSError as error:
                if descriptor is None:
                    return None
                os.close(descriptor)
                return False if error.errno in _LOCKED_ERRORS else None

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False


def _lock_without_waiting(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Lone surrogates cannot be encoded. The others control a terminal, reorder its text, or end a line for some readers.
_ESCAPED_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def to_json(value: Any, *, indent: int | None = None, encoding: str | None = "utf-8") -> str:
    """Return valid JSON that can be encoded in `encoding`.

    NaN and infinite numbers become null. A lone surrogate, which stands for a byte of a file name that is not UTF-8, is
    written as its JSON escape, so that it can be read back, and so is what controls a terminal or ends a line for
    readers of Unicode; in another encoding so is everything beyond ASCII.
    """
    is_utf8 = (encoding or "").lower().replace("_", "-") in {"utf-8", "utf8"}
    try:
        text = json.dumps(value, ensure_ascii=not is_utf8, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_non_finite(value), ensure_ascii=not is_utf8, indent=indent, allow_nan=False)
    return _ESCAPED_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises ValueError: `json.JSONDecodeError` also where Python itself has another error, for values that are nested too
    deeply and integers of too many digits, and `UnicodeDecodeError`.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise json.JSONDecodeError("values are nested too deeply", "", 0) from None
    except ValueError:
        raise json.JSONDecodeError("an integer has too many digits", "", 0) from None


def print_json(value: Any) -> None:
    """Print a value to stdout as one line of JSON, from the main process only."""
    if is_main_process():
        sys.stdout.write(to_json(value, encoding=sys.stdout.encoding) + "\n")


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_non_finite(each) for key, each in value.items()}
    return [_without_non_finite(each) for each in value] if isinstance(value, list | tuple) else value
