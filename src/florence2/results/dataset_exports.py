"""The answers of a run as a dataset of another tool: `--export coco`.

All lines of the run are written at its end, however often it was interrupted. A folder that is there is complete, and
is never written to again: people correct what was exported. Knows no model; the formats are those of
`florence2 data convert`.
"""

import shutil
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from florence2.data.columns import ColumnMapping
from florence2.data.formats.annotations import DatasetRow
from florence2.data.inspection.convert import OutputFormat, convert, refuse_shared_stems
from florence2.data.sample import Sample
from florence2.data.tables import Row
from florence2.errors import UserError
from florence2.model.tasks import InputType, OutputType, Task
from florence2.settings_io import closest_name_hint

FORMATS: tuple[OutputFormat, ...] = typing.get_args(OutputFormat)


@dataclass(frozen=True)
class DatasetExport:
    """A format, and the folder that a run is written to."""

    format: OutputFormat
    folder: Path

    @classmethod
    def parse(cls, words: str, output_path: str, tasks: Sequence[Task]) -> "DatasetExport":
        """Read FORMAT or FORMAT=FOLDER; refuse a format that holds nothing of what the tasks answer."""
        name, _, folder = words.partition("=")
        to = next((known for known in FORMATS if known == name), None)
        if to is None:
            raise UserError(f"`--export {name}` is no format", closest_name_hint(name, list(FORMATS)))
        written = Path(output_path)
        if output_path == "-" or (written.exists() and not written.is_file()):
            raise UserError(f"`--export` reads `--output_path` again, and {output_path} is no file", "name a file")
        if not any(fits(to, task) for task in tasks):
            fitting = [known for known in FORMATS if any(fits(known, task) for task in tasks)]
            asked = " and ".join(f"`{task.name}`" for task in tasks)
            raise UserError(f"{to} cannot hold what {asked} answers", f"export {' or '.join(fitting)}")
        return cls(to, Path(folder).expanduser() if folder else written.with_name(f"{written.stem}-{to}"))

    @property
    def is_done(self) -> bool:
        """Tell whether the folder is there."""
        return self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir()))

    def check_samples(self, wanted: Iterable[Sample]) -> None:
        """Refuse to start on questions whose answers could not be written in the end."""
        refuse_shared_stems(self.format, (sample.id for sample in wanted))
        if self.is_done:
            raise UserError(
                f"{self.folder} is there already, and there are more answers to come",
                f"move it away, or name a new folder: `--export {self.format}=FOLDER`",
            )

    def write(self, rows: Iterable[Row], samples: Sequence[Sample], root: Path) -> Iterator[str]:
        """Write all rows, and say what was written; `root` is the folder of pictures that no sample names."""
        if not (rows := list(rows)):
            yield f"there is nothing to export to {self.folder}"
            return
        about = {sample.id: sample for sample in samples}
        partial = self.folder.with_name(self.folder.name + ".partial")
        _clear(partial)
        yield from convert(_entries(rows, about, root), ColumnMapping(""), partial, self.format).lines()
        if self.folder.is_dir():
            self.folder.rmdir()  # it is empty
        partial.rename(self.folder)
        yield f"exported to {self.folder}"


def fits(to: OutputFormat, task: Task) -> bool:
    """Tell whether a format can hold what a task answers."""
    is_caption = task.output_type is OutputType.TEXT and task.input_type is InputType.NOTHING
    match to:
        case "coco" | "yolo":
            return task.output_type is not OutputType.TEXT or task.input_type is InputType.REGION
        case "folder":
            return is_caption
        case _:
            return True


def _entries(rows: Iterable[Row], about: dict[str, Sample], root: Path) -> Iterator[DatasetRow]:
    for row in rows:
        name = str(row["file_name"])
        sample = about.get(name) or Sample(name, root / name, "")
        path = sample.image
        said = {key: value for key, value in row.items() if key not in ("alternatives", "image_dir", "run_id")}
        yield DatasetRow(name, said, sample, not isinstance(path, Path) or path.is_file())


def _clear(partial: Path) -> None:
    """Remove what a run left that was stopped while it exported."""
    if partial.is_dir():
        shutil.rmtree(partial)
