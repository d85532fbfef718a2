"""`captions.jsonl`: one line for each answer, written as it comes, so that a run can stop anywhere and go on.

A line belongs to a run: the model and the settings that made it. Started again, a run asks only what it has no line
for; lines with an error are asked again. A line of another run stays until the same question is answered anew.
Knows no model and no settings; the caller names the run.
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO, Any, Self

from florence2.data.sample import Prediction, Sample
from florence2.errors import UserError

Key = tuple[str, str, str, str]
Row = dict[str, Any]


def run_id(*parts: object) -> str:
    """Name a run by everything that shapes its answers."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def weights_fingerprint(folder: Path) -> list[tuple[str, int, int]]:
    """Tell the weights in a folder from other weights there: names, sizes and times of the files."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


class Journal:
    """A file of predictions, open for writing; a context manager.

    `path` `-` is standard output, which is never read back. `folder` leads from the file to the pictures and is
    written on each line, so that the file is a dataset wherever it lies. `fresh` forgets this run's earlier lines.
    """

    def __init__(self, path: str, *, run: str, image_dir: str = ".", overwrite: bool = False) -> None:
        self.path, self.run, self.folder, self.fresh = Path(path), run, image_dir, overwrite
        self._to_stdout = path == "-"
        self._answered: set[Key] = set()
        self._others: set[Key] = set()

    def __enter__(self) -> Self:
        self._file: IO[str] | None = sys.stdout if self._to_stdout else None
        if self._to_stdout:
            return self
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder", "pass a file such as `--output_path captions.jsonl`")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._is_file = not self.path.exists() or self.path.is_file()  # and no pipe or device
        if self.path.is_file():
            self._recover()
        elif not os.access(self.path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        if self._to_stdout or self._file is None:
            return
        with self._file:
            self._file.flush()
            if self._is_file:
                os.fsync(self._file.fileno())
        if self._is_file and self._answered & self._others:
            self._rewrite(lambda row: self._is_this_run(row) or self._key(row) not in self._answered)

    def missing(
        self, samples: Iterable[Sample], bare: Callable[[Prediction], Prediction] = lambda prediction: prediction
    ) -> Iterator[Sample]:
        """Pass on the samples that this run has no answer for, and those that its answers lead to.

        `bare` takes off a line what was put around the model's own words.
        """
        leading: dict[Key, Sample] = {}
        for sample in samples:
            key = (*sample.key, self.folder)
            if key not in self._answered:
                yield sample
            elif sample.follow_up:
                leading[key] = sample
        if leading:
            told = ((leading.get(self._key(row)), row) for row in self.rows())
            led = (s.follow_up(bare(Prediction.from_json(row))) for s, row in told if s and s.follow_up)
            yield from self.missing(chain.from_iterable(led), bare)

    def rows(self) -> Iterator[Row]:
        """Give the lines of this run that are answers about the pictures of this folder."""
        for row in self._rows() if self._answered else ():
            key = self._key(row)
            if self._is_this_run(row) and row.get("error") is None and key[-1] == self.folder and key in self._answered:
                yield row

    def write(self, prediction: Prediction) -> None:
        """Add one line, whole and handed to the system when this returns; a question is answered once."""
        row = {**prediction.to_json(self.folder), "run_id": self.run}
        if self._key(row) in self._answered:
            return
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        if prediction.error is None:
            self._answered.add(self._key(row))

    def _recover(self) -> None:
        """Learn what is answered; drop a torn last line, errors to be asked again, and answers given anew since."""
        stale = _is_truncated(self.path)
        for row in self._rows():
            if not self._is_this_run(row):
                self._others.add(self._key(row))
            elif self._is_valid(row):
                self._answered.add(self._key(row))
            else:
                stale = True
        if stale or self._answered & self._others:
            self._rewrite(
                lambda row: self._is_valid(row) if self._is_this_run(row) else self._key(row) not in self._answered
            )

    def _is_this_run(self, row: Row) -> bool:
        return bool(row.get("run_id") == self.run)

    def _is_valid(self, row: Row) -> bool:
        return row.get("error") is None and not self.fresh

    def _key(self, row: Row) -> Key:
        return (*Prediction.from_json(row).key, str(row.get("image_dir") or "."))

    def _rows(self) -> Iterator[Row]:
        """Read the whole lines; a line that is no prediction means that the file is somebody else's."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                    row["file_name"]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{self.path} line {number} is no prediction, so the file is left alone",
                        "pass another `--output_path`",
                    ) from error
                yield row

    def _rewrite(self, kept: Callable[[Row], bool]) -> None:
        """Put the kept lines in the file's place, at one stroke."""
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows() if kept(row))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)


def add_affixes(prediction: Prediction, prefix: str, suffix: str) -> Prediction:
    """Put the user's words around a caption and its alternatives; structured answers stay bare."""
    if not isinstance(prediction.answer, str) or prediction.error is not None:
        return prediction
    others = tuple(add_affixes(other, prefix, suffix) for other in prediction.alternatives)
    return replace(prediction, text=f"{prefix}{prediction.text}{suffix}", alternatives=others)


def strip_affixes(prediction: Prediction, prefix: str, suffix: str) -> Prediction:
    """Take the user's words off a caption again."""
    if not isinstance(prediction.answer, str):
        return prediction
    return replace(prediction, text=prediction.text.removeprefix(prefix).removesuffix(suffix))


def _is_truncated(path: Path) -> bool:
    """Tell whether the last line was cut off: no newline at its end."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
