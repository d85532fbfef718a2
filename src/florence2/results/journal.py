"""The journal of predictions, `captions.jsonl`: one line per prediction, written at once, so that a run can resume.

Each line names the run that wrote it: the model and the settings. A resumed run predicts only the samples without a
line of its own; lines with an error are predicted again. A line of another run stays until this run predicts the same
sample.
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Self, TextIO

from florence2.data.listed.digest_set import DigestSet, digest_key
from florence2.data.listed.listed_samples import sample_keys
from florence2.data.sample import Prediction, Sample, SampleKey
from florence2.data.streams.outputs.prediction_lines import count_torn_lines, read_prediction_lines
from florence2.data.tables import Row
from florence2.errors import OptionError
from florence2.files import WriteLock, atomic_write, named_errors, to_json
from florence2.log import count_noun, logger
from florence2.results.affixes import Affixes

_NO_AFFIXES = Affixes()
_CLOCK_STEP = 2.0  # seconds; the times of files are that coarse in some file systems


def make_run_id(*parts: object) -> str:
    """Hash everything that determines the predictions of a run."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def weights_fingerprint(folder: Path) -> list[tuple[str, int, int]]:
    """Return names, sizes and modification times of the weight files in a folder."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


class Journal:
    """A JSONL file of predictions, open for appending; a context manager.

    `path` `-` is stdout, which is never read back. `image_dir` is the path from the file to the images; each line has
    it, so that the file is a dataset. `affixes` are added to captions as they are written. `overwrite` discards this
    run's earlier lines. A file that another process writes is refused. A sample counts as predicted by a digest of 128
    bits of its key and its `image_dir` (`DigestSet`).
    """

    def __init__(
        self, path: str, *, run_id: str, image_dir: str = ".", affixes: Affixes = _NO_AFFIXES, overwrite: bool = False
    ) -> None:
        self.path, self.run_id, self.image_dir = Path(path), run_id, image_dir
        self._affixes, self._overwrite = affixes, overwrite
        self._to_stdout = path == "-"
        self._file: TextIO | None = sys.stdout if self._to_stdout else None
        self._predicted, self._other_runs = DigestSet(), DigestSet()
        self._is_regular_file = not self._to_stdout and (not self.path.exists() or self.path.is_file())  # not a pipe
        if self._is_regular_file and self.path.is_symlink() and self.path.exists():
            self.path = self.path.resolve()  # a rewrite replaces the file, not the link, and both have one lock
        self._lock: WriteLock | None = None
        if not self._to_stdout:
            self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close(is_complete=error is None)

    def close(self, *, is_complete: bool = True) -> None:
        """Close the file, remove the lines of other runs that this run replaced, and release the lock.

        After a run that is not complete, `lacks_line` of the next one finds files that were written before their line.
        """
        try:
            self._close_file()
        finally:
            if self._lock is not None:
                self._lock.release(is_complete=is_complete)

    def _close_file(self) -> None:
        if self._to_stdout or self._file is None:
            return
        with named_errors(self.path), self._file as file:
            file.flush()
            if self._is_regular_file:
                os.fsync(file.fileno())
        self._file = None
        if self._is_regular_file and self._predicted.has_common(self._other_runs):
            self._rewrite(lambda row: self._is_this_run(row) or self._key(row) not in self._predicted)

    def missing(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples without a prediction of this run, follow-ups of earlier predictions included."""
        with_follow_ups: dict[bytes, Sample] = {}
        for sample in samples:
            key = self._digest(sample.key)
            if key not in self._predicted:
                yield sample
            elif sample.follow_up:
                with_follow_ups[key] = sample
        if with_follow_ups:
            yield from self.missing(chain.from_iterable(self._follow_ups(with_follow_ups)))

    def missing_mask(self, samples: Sequence[Sample]) -> bytearray:
        """Return 1 for each sample without a prediction of this run, and 0 for each with one."""
        if not self._predicted:
            return bytearray(b"\1") * len(samples)
        return bytearray(self._digest(key) not in self._predicted for key in sample_keys(samples))

    def lacks_line(self, key: SampleKey, file: Path) -> bool:
        """Return whether a file of a sample was written by a run that was interrupted before it wrote the line."""
        if self._lock is None or self._lock.left_at is None:
            return False
        digest = self._digest(key)
        is_written = file.stat().st_mtime >= self._lock.left_at - _CLOCK_STEP
        return is_written and digest not in self._predicted and digest not in self._other_runs

    def predicted_keys(self) -> frozenset[SampleKey]:
        """Return the samples with a prediction of this run."""
        return frozenset(map(SampleKey.from_row, self.rows()))

    def rows(self) -> Iterator[Row]:
        """Yield the lines of this run without an error for images of this `image_dir`."""
        for row in read_prediction_lines(self.path) if self._predicted else ():
            if self._is_this_run(row) and row.get("error") is None and _image_dir(row) == self.image_dir:
                yield row

    def write(self, prediction: Prediction) -> None:
        """Append a prediction and flush it; a second prediction of a sample is ignored."""
        row = {**self._affixes.add(prediction).to_json(self.image_dir), "run_id": self.run_id}
        key = self._key(row)
        if key in self._predicted:
            return
        with named_errors(Path("stdout") if self._to_stdout else self.path):
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8", newline="\n")
            self._file.write(to_json(row, encoding=self._file.encoding) + "\n")
            self._file.flush()
        if prediction.error is None:
            self._predicted.add(key)

    def _follow_ups(self, samples: dict[bytes, Sample]) -> Iterator[Iterable[Sample]]:
        for row in self.rows():
            sample = samples.get(self._key(row))
            if sample and sample.follow_up:
                yield sample.follow_up(self._affixes.strip(Prediction.from_json(row)))

    def _open(self) -> None:
        """Lock the file against a second process, and read it."""
        if self.path.is_dir():
            raise OptionError(
                f"{self.path} is a folder",
                "pass a file to `--output_path`, or end the name with `/` for a folder of shards",
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._is_regular_file:
            self._lock = WriteLock(self.path)
            if self._lock.is_acquired is False:
                raise OptionError(
                    f"another process writes {self.path}", "wait until it ends, or pass another `--output_path`"
                )
            if self._lock.is_acquired is None:
                logger.warning(f"{self.path} cannot be locked: do not start a second run that writes it")
        try:
            self._recover()
        except BaseException:
            self.close(is_complete=self._lock is None or self._lock.left_at is None)
            raise

    def _recover(self) -> None:
        """Read which samples are predicted; remove incomplete lines, errors, and replaced lines of other runs."""
        if not self.path.is_file():
            if not os.access(self.path.parent, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
            return
        num_torn, is_ended = count_torn_lines(self.path)
        has_invalid_rows = num_torn > 0 or not is_ended
        for row in read_prediction_lines(self.path):
            if not self._is_this_run(row):
                self._other_runs.add(self._key(row))
            elif self._is_valid(row):
                self._predicted.add(self._key(row))
            else:
                has_invalid_rows = True
        if num_torn:
            logger.warning(f"{self.path}: {count_noun(num_torn, 'incomplete line')} of an interrupted run removed")
        if has_invalid_rows or self._predicted.has_common(self._other_runs):
            self._rewrite(
                lambda row: self._is_valid(row) if self._is_this_run(row) else self._key(row) not in self._predicted
            )

    def _is_this_run(self, row: Row) -> bool:
        return bool(row.get("run_id") == self.run_id)

    def _is_valid(self, row: Row) -> bool:
        return row.get("error") is None and not self._overwrite

    def _key(self, row: Row) -> bytes:
        return digest_key(*SampleKey.from_row(row), _image_dir(row))

    def _digest(self, key: SampleKey) -> bytes:
        return digest_key(*key, self.image_dir)

    def _rewrite(self, keep: Callable[[Row], bool]) -> None:
        with atomic_write(self.path, sync=True) as file:
            file.writelines(to_json(row) + "\n" for row in read_prediction_lines(self.path) if keep(row))


def _image_dir(row: Row) -> str:
    return str(row.get("image_dir") or ".")
