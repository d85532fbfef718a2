"""The output of one shard: a journal on this machine while it is open, a file at its target once it is complete."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from florence2.data.sample import Prediction
from florence2.data.stores.store_path import AnyPath, StorePath
from florence2.data.stores.write_store import upload_file
from florence2.files import atomic_write, to_json
from florence2.results.affixes import Affixes
from florence2.results.journal import Journal
from florence2.results.shards.parquet_rows import check_predictions, read_parquet, write_parquet


@dataclass(frozen=True)
class JournalOptions:
    """What the journals of a run have in common; the fields are those of `Journal`."""

    run_id: str
    affixes: Affixes
    overwrite: bool = False

    def open(self, path: Path | str, image_dir: str) -> Journal:
        """Open a journal."""
        return Journal(
            str(path), run_id=self.run_id, image_dir=image_dir, affixes=self.affixes, overwrite=self.overwrite
        )


class ShardOutput:
    """An output that is written; a context manager, which leaves the journal where it is.

    `path` is the journal's file; where it is the target itself, the output is complete at any time.
    """

    def __init__(self, target: AnyPath, path: Path, journal: Journal) -> None:
        self.target, self.path, self.journal = target, path, journal
        self.num_lines = self.num_errors = 0
        self.first_error: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal."""
        self.journal.close()

    def write(self, prediction: Prediction) -> None:
        """Append a prediction."""
        self.journal.write(prediction)

    def finish(self) -> None:
        """Close the journal and put its rows in place at the target, complete."""
        self.close()
        if self.path == self.target:
            return
        self.path.touch()  # a shard without an image has an empty output
        for row in self._rows():
            self.num_lines += 1
            if row.get("error") is not None:
                self.num_errors += 1
                self.first_error = self.first_error or f"{row['file_name']}: {row['error']}"
        if isinstance(self.target, StorePath):
            with tempfile.TemporaryDirectory() as folder:
                upload_file(self._converted(Path(folder)), self.target)
            self.path.unlink()
        elif is_parquet(self.target):
            write_parquet(self._rows(), self.target)
            self.path.unlink()
        else:
            self.path.replace(self.target)

    def _converted(self, folder: Path) -> Path:
        if not is_parquet(self.target):
            return self.path
        write_parquet(self._rows(), folder / "rows.parquet")
        return folder / "rows.parquet"

    def _rows(self) -> Iterator[dict[str, Any]]:
        with self.path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def is_parquet(path: AnyPath) -> bool:
    """Return whether a target is a Parquet file."""
    return path.suffix.lower() == ".parquet"


def restore_journal(target: AnyPath, path: Path) -> None:
    """Write the rows of an earlier output to the journal's file, unless an interrupted run left one."""
    if path == target or path.exists() or not target.is_file():
        return
    if is_parquet(target):
        check_predictions(target)
        with atomic_write(path) as file:
            file.writelines(to_json(row) + "\n" for row in read_parquet(target))
        return
    with target.open("rb") as source, atomic_write(path, "wb") as file:
        shutil.copyfileobj(source, file)
