"""Sources of rows: a dataset in some format, and annotation files about the images of a folder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.folders.image_locator import DATASET_DIR_HINT, confine_to
from florence2.data.formats.annotations import AnnotatedImage, image_beside, resolve_task, rows_from_annotations
from florence2.data.sample import Sample
from florence2.model.tasks import OutputType, find_task


class DatasetSource(Protocol):
    """A dataset in some format, read as rows with their images."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def root(self) -> Path | None: ...  # noqa: D102

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]: ...  # noqa: D102


@dataclass(frozen=True)
class AnnotationSource:
    """Annotation files about the images of the folder `root`."""

    name: str
    root: Path
    read: Callable[[], Iterator[tuple[str, AnnotatedImage]]]
    default_output: OutputType = OutputType.BOXES

    def rows(self, columns: ColumnMapping) -> Iterator[DatasetRow]:
        """Read the annotations of each image as rows of the task."""
        locate = confine_to(self.root, DATASET_DIR_HINT)
        for where, annotated in self.read():
            task = resolve_task(find_task(columns.task), annotated.captions is not None, self.default_output)
            located = locate(image_beside(self.root, annotated.file_name), where)
            image = Sample(located.id, located.path, "")
            ignored = annotated.ignored_shapes
            for row in rows_from_annotations(annotated, task):
                yield DatasetRow(where, {**row, "file_name": located.id}, image, located.exists, ignored)
                ignored = ()
