"""Sources of rows: a dataset in some format, and annotation files about the images of a folder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.folders.image_locator import DATASET_DIR_HINT, LocatedImage, confine_to
from florence2.data.formats.annotations import (
    AnnotatedImage,
    has_only_unread_objects,
    image_beside,
    resolve_task,
    rows_from_annotations,
)
from florence2.data.sample import Sample
from florence2.errors import DatasetError
from florence2.log import count_kinds
from florence2.model.tasks import OutputType, Task, find_task

_UNREAD_IMAGE = "image of which no object is read"


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
        origins: dict[str, str] = {}
        pending: DatasetRow | None = None
        elsewhere: list[tuple[str, str]] = []  # what is not read of images without a row
        unlisted: list[str] = []
        for where, annotated in self.read():
            if annotated.error is not None and not annotated.file_name:
                yield DatasetRow.unreadable(where, annotated.error)
                continue
            task = resolve_task(find_task(columns.task), annotated.captions is not None, self.default_output)
            located = locate(image_beside(self.root, annotated.file_name, *annotated.other_names), where)
            if error := _other_origin(located, annotated, origins, where):
                yield DatasetRow.unreadable(where, error)
                continue
            image = Sample(located.id, located.path, "")
            ignored = (*annotated.ignored_shapes, *_objects_without_polygons(annotated, task))
            unlisted += annotated.unlisted_annotations
            if annotated.error is not None:
                row = {"file_name": located.id}
                yield DatasetRow(where, row, image, located.exists, ignored, tuple(unlisted), annotated.error)
                unlisted = []
                continue
            crowds = annotated.crowds if columns.keep_answers else ()
            if has_only_unread_objects(annotated) and not crowds:
                elsewhere += [(where, kind) for kind in (*ignored, _UNREAD_IMAGE)]
                continue
            for row in rows_from_annotations(replace(annotated, crowds=crowds), task):
                if pending is not None:
                    yield pending
                named_row = {**row, "file_name": located.id}
                pending = DatasetRow(
                    where,
                    named_row,
                    image,
                    located.exists,
                    ignored,
                    tuple(unlisted),
                    annotations=None if annotated.captions is not None else annotated.annotations,
                )
                ignored, unlisted = (), []
            elsewhere += [(where, kind) for kind in ignored]
        kinds = [kind for _, kind in elsewhere]
        if pending is None and _UNREAD_IMAGE in kinds:
            what = f"{self.name} has no object that can be read, only {count_kinds(kinds)}"
            raise DatasetError(what, "pass a dataset with boxes, polygons or captions")
        if pending is not None:  # what images without rows have is counted with the last row
            unlisted = [*pending.unlisted_annotations, *unlisted]
            yield pending._replace(ignored_elsewhere=elsewhere, unlisted_annotations=unlisted)


def _other_origin(
    located: LocatedImage, image: AnnotatedImage, origins: dict[str, str], where: str
) -> DatasetError | None:
    """Return the error for a file that another name matched before: `x/a.jpg` and `y/a.jpg` are not one `a.jpg`."""
    name = (*image.other_names, image.file_name)[0].replace("\\", "/").removeprefix("./")
    origin = origins.setdefault(located.id, name) if located.exists else name
    if origin == name:
        return None
    what = f"{where}: `{name}` and `{origin}` both match {located.path}"
    return DatasetError(what, "write the names relative to the folder, or pass --dataset_dir")


def _objects_without_polygons(image: AnnotatedImage, task: Task) -> list[str]:
    """Name the objects that a task with polygons as its output cannot have as a target."""
    if task.output_type is not OutputType.POLYGONS:
        return []
    return ["object without a polygon" for annotation in image.annotations if not annotation.polygons]
