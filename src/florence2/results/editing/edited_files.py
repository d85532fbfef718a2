"""The files behind an edited dataset: the lines of one table, and caption files, written together or not at all."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from florence2.errors import DatasetError, UserError
from florence2.files import WriteLock, atomic_write

RELOAD_HINT = "reload the page to read it again; nothing was written"


class FileChangedError(UserError):
    """A file was changed by another program since it was read."""


@dataclass(frozen=True)
class FileEdit:
    """New contents of lines of the table, by index, and of other files; None removes a file."""

    lines: Mapping[int, bytes] = field(default_factory=dict)
    files: Mapping[Path, bytes | None] = field(default_factory=dict)


def split_lines(content: bytes) -> list[bytes]:
    """Split at line breaks, which stay at the ends of the lines."""
    return content.splitlines(keepends=True)


class EditedFiles:
    """The contents of the files as they were read; `commit` writes an edit where the files are still the same."""

    def __init__(self, table: Path | None = None, split: Callable[[bytes], list[bytes]] = split_lines) -> None:
        """Read the table; `split` splits its content into lines, which joined are the content."""
        self.table = table
        self._lines: list[bytes] = []
        self._state: tuple[int, int, int] | None = None
        self._files: dict[Path, bytes | None] = {}
        if table is not None:
            self._lines = split(_read(table))
            self._state = _file_state(table)

    @property
    def num_lines(self) -> int:
        """Return the number of lines of the table, empty ones included."""
        return len(self._lines)

    def line(self, index: int) -> bytes:
        """Return a line of the table with its end."""
        return self._lines[index]

    def file(self, path: Path) -> bytes | None:
        """Return the content of a file as it was when it was first read; None where it does not exist."""
        if path not in self._files:
            self._files[path] = _read(path) if path.is_file() else None
        return self._files[path]

    def commit(self, edit: FileEdit) -> FileEdit:
        """Write an edit, and return the edit that reverts it, byte for byte.

        Raises FileChangedError where a file was changed since it was read, and UserError where another process writes
        the table or a file cannot be written; then nothing is written, and files written before are restored. Each
        file is replaced atomically, the table last.
        """
        inverse = FileEdit(
            {index: self._lines[index] for index in edit.lines}, {path: self.file(path) for path in edit.files}
        )
        try:
            self._write(edit)
        except OSError as error:
            is_restored = self._restore(inverse.files)
            hint = "nothing was written" if is_restored else "reload the page, which shows what was written"
            raise UserError(
                f"{error.strerror}: {error.filename or self.table}", f"free space or change permissions; {hint}"
            ) from error
        return inverse

    def _write(self, edit: FileEdit) -> None:
        if not edit.lines or self.table is None:
            self._check_files(edit.files)
            self._write_files(edit.files)
            return
        lock = WriteLock(self.table)
        if lock.is_acquired is False:
            raise UserError(
                f"another process writes {self.table}, such as a running `florence2 predict`",
                "wait until it ends, then reload the page; nothing was written",
            )
        try:
            self._check_table(self.table)
            self._check_files(edit.files)
            self._write_files(edit.files)
            self._write_table(self.table, edit.lines)
        finally:
            lock.release()

    def _restore(self, files: Mapping[Path, bytes | None]) -> bool:
        """Write back what files contained before an edit that failed; return whether all of them contain it again."""
        changed = {path: content for path, content in files.items() if self._files[path] != content}
        try:
            self._write_files(changed)
        except OSError:
            return False
        return True

    def _check_table(self, table: Path) -> None:
        """Compare the content only where size or time differ, because a copy tool may have touched it."""
        if _file_state(table) != self._state and (not table.is_file() or _read(table) != b"".join(self._lines)):
            raise FileChangedError(f"{table} was changed by another program", RELOAD_HINT)

    def _check_files(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if (_read(path) if path.is_file() else None) != self.file(path):
                raise FileChangedError(f"{path} was changed by another program", RELOAD_HINT)

    def _write_files(self, files: Mapping[Path, bytes | None]) -> None:
        for path, content in files.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                with atomic_write(path, "wb", sync=True) as file:
                    file.write(content)
            self._files[path] = content

    def _write_table(self, table: Path, lines: Mapping[int, bytes]) -> None:
        changed = list(self._lines)
        for index, line in lines.items():
            changed[index] = line
        with atomic_write(table, "wb", sync=True) as file:
            file.writelines(changed)
        self._lines, self._state = changed, _file_state(table)


def _file_state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}", "check its permissions") from None
