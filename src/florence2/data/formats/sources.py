"""Sources of rows: a dataset in some format, and annotation files about the images of a folder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.folders.image_locator import DATASET_DIR_HINT, confine_to
from florence2.data.formats.annotations import AnnotatedImage, image_beside, resolve_task, rows_from_annotations
from florence2.data.sample import Sample
from florence2.model.tasks import OutputType, Task, find_task


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
        pending: DatasetRow | None = None
        ignored: list[str] = []
        unlisted: list[str] = []
        for where, annotated in self.read():
            if annotated.error is not None and not annotated.file_name:
                yield DatasetRow.unreadable(where, annotated.error)
                continue
            task = resolve_task(find_task(columns.task), annotated.captions is not None, self.default_output)
            located = locate(image_beside(self.root, annotated.file_name), where)
            image = Sample(located.id, located.path, "")
            ignored += [*annotated.ignored_shapes, *_objects_without_polygons(annotated, task)]
            unlisted += annotated.unlisted_annotations
            if annotated.error is not None:
                row = {"file_name": located.id}
                yield DatasetRow(where, row, image, located.exists, tuple(ignored), tuple(unlisted), annotated.error)
                ignored, unlisted = [], []
                continue
            crowds = annotated.crowds if columns.keep_answers else ()
            for row in rows_from_annotations(replace(annotated, crowds=crowds), task):
                if pending is not None:
                    yield pending
                named_row = {**row, "file_name": located.id}
                pending = DatasetRow(
                    where,
                    named_row,
                    image,
                    located.exists,
                    tuple(ignored),
                    tuple(unlisted),
                    annotations=None if annotated.captions is not None else annotated.annotations,
                )
                ignored, unlisted = [], []
        if pending is not None:  # what is not read of the last images, which have no rows, is counted with the last row
            counts = (*pending.ignored_shapes, *ignored), (*pending.unlisted_annotations, *unlisted)
            yield pending._replace(ignored_shapes=counts[0], unlisted_annotations=counts[1])


def _objects_without_polygons(image: AnnotatedImage, task: Task) -> list[str]:
    """Name the objects that a task with polygons as its output cannot have as a target."""
    if task.output_type is not OutputType.POLYGONS:
        return []
    return ["object without a polygon" for annotation in image.annotations if not annotation.polygons]
