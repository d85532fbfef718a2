"""Export of predictions as a dataset: `--export coco`.

All lines of a run are exported at its end, however often it was interrupted. An existing folder is complete and is
never overwritten, because users correct exported datasets. The formats are those of `florence2 data convert`.
"""

import shutil
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.inspection.convert import OutputFormat, check_distinct_stems, convert
from florence2.data.sample import Sample
from florence2.data.tables import Row
from florence2.errors import OptionError
from florence2.model.tasks import InputType, OutputType, Task
from florence2.settings_io import closest_name_hint

FORMATS: tuple[OutputFormat, ...] = typing.get_args(OutputFormat)

_JOURNAL_KEYS = {"alternatives", "image_dir", "run_id"}


@dataclass(frozen=True)
class DatasetExport:
    """A dataset format and the folder to write."""

    format: OutputFormat
    folder: Path

    @classmethod
    def parse(cls, argument: str, output_path: str, tasks: Sequence[Task]) -> "DatasetExport":
        """Parse FORMAT or FORMAT=FOLDER; refuse a format that cannot hold the output of any of the tasks."""
        name, _, folder = argument.partition("=")
        export_format = next((known for known in FORMATS if known == name), None)
        if export_format is None:
            raise OptionError(f"`--export {name}` is not a format", closest_name_hint(name, list(FORMATS)))
        predictions = Path(output_path)
        if output_path == "-" or (predictions.exists() and not predictions.is_file()):
            raise OptionError(
                f"`--export` reads `--output_path`, and {output_path} is not a file",
                "pass a file such as `--output_path captions.jsonl`",
            )
        if not any(can_export(export_format, task) for task in tasks):
            possible = [known for known in FORMATS if any(can_export(known, task) for task in tasks)]
            names = " and ".join(f"`{task.name}`" for task in tasks)
            raise OptionError(
                f"{export_format} cannot hold the output of {names}",
                f"pass `--export {'` or `--export '.join(possible)}`",
            )
        default = predictions.with_name(f"{predictions.stem}-{export_format}")
        return cls(export_format, Path(folder).expanduser() if folder else default)

    @property
    def is_done(self) -> bool:
        """Whether the folder exists and is not empty."""
        return self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir()))

    def check_samples(self, samples: Iterable[Sample]) -> None:
        """Raise before prediction if the samples' predictions could not be exported."""
        check_distinct_stems(self.format, (sample.id for sample in samples))
        if self.is_done:
            raise OptionError(
                f"{self.folder} exists, and there are more samples to predict",
                f"move the folder, or pass a new one: `--export {self.format}=FOLDER`",
            )

    def write(self, rows: Iterable[Row], samples: Sequence[Sample], image_dir: Path) -> Iterator[str]:
        """Write the rows and yield lines that describe the export; `image_dir` has the images that no sample names."""
        if not (rows := list(rows)):
            yield f"there are no predictions to export to {self.folder}"
            return
        samples_by_id = {sample.id: sample for sample in samples}
        staging_dir = self.folder.with_name(self.folder.name + ".partial")
        if staging_dir.is_dir():  # of a run that was interrupted
            shutil.rmtree(staging_dir)
        dataset_rows = _dataset_rows(rows, samples_by_id, image_dir)
        yield from convert(dataset_rows, ColumnMapping(""), staging_dir, self.format).lines()
        if self.folder.is_dir():
            self.folder.rmdir()  # it is empty
        staging_dir.rename(self.folder)
        yield f"exported to {self.folder}"


def can_export(export_format: OutputFormat, task: Task) -> bool:
    """Return whether a format can hold the output of a task."""
    is_caption = task.output_type is OutputType.TEXT and task.input_type is InputType.NOTHING
    match export_format:
        case "coco" | "yolo":
            return task.output_type is not OutputType.TEXT or task.input_type is InputType.REGION
        case "folder":
            return is_caption
        case _:
            return True


def _dataset_rows(rows: Iterable[Row], samples: dict[str, Sample], image_dir: Path) -> Iterator[DatasetRow]:
    for row in rows:
        name = str(row["file_name"])
        sample = samples.get(name) or Sample(name, image_dir / name, "")
        annotation = {key: value for key, value in row.items() if key not in _JOURNAL_KEYS}
        yield DatasetRow(name, annotation, sample, not isinstance(sample.image, Path) or sample.image.is_file())
