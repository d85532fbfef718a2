"""The report on a dataset: counts of images, tasks and labels, and its issues, as text and as JSON."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence2.data.columns import ColumnMapping, DatasetRow
from florence2.data.folders.listing import is_file
from florence2.data.formats.annotations import NO_LABEL
from florence2.data.inspection.issues import Issue, IssueKind, LengthLimit, RowReport, check_row
from florence2.data.sample import Sample, SampleKey
from florence2.errors import DatasetError, UserError
from florence2.log import count_kinds, count_noun, name_columns, note_files
from florence2.model.location_grammar import decode_objects
from florence2.model.tasks import InputType, OutputType, find_task

_EXAMPLES = 3  # issues of a kind that the text names one by one
_LABELS = 12  # labels that the text counts one by one


@dataclass(frozen=True)
class DatasetReport:
    """The contents and the issues of a dataset; `tasks` counts samples, `objects` counts objects by label.

    `ignored_shapes` are the places and kinds of annotations that the reader does not read, such as points.
    `ignored_files` are paths and kinds of files that are not read as images; `unread_columns` counts rows by column.
    """

    source: str
    num_images: int
    tasks: Mapping[str, int]
    objects: Mapping[str, int]
    empty_targets: int
    max_target_tokens: int
    issues: tuple[Issue, ...]
    ignored_shapes: tuple[tuple[str, str], ...] = ()
    ignored_files: tuple[tuple[str, str], ...] = ()
    unread_columns: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Return the number of samples."""
        return sum(self.tasks.values())

    def issue_counts(self) -> dict[IssueKind, int]:
        """Count the issues of each kind."""
        counts = Counter(issue.kind for issue in self.issues)
        return {kind: counts[kind] for kind in IssueKind if counts[kind]}

    def to_json(self) -> dict[str, Any]:
        """Return the report as one JSON object."""
        return {
            "dataset": self.source,
            "images": self.num_images,
            "samples": self.num_samples,
            "tasks": dict(self.tasks),
            "objects": dict(self.objects),
            "empty_targets": self.empty_targets,
            "max_target_tokens": self.max_target_tokens,
            "ignored_shapes": dict(Counter(kind for _, kind in self.ignored_shapes)),
            "ignored_files": dict(Counter(kind for _, kind in self.ignored_files)),
            "unread_columns": dict(self.unread_columns),
            "issue_counts": {kind.name.lower(): number for kind, number in self.issue_counts().items()},
            "issues": [
                {"kind": issue.kind.name.lower(), "where": issue.where, "what": issue.what} for issue in self.issues
            ],
        }

    def lines(self) -> Iterator[str]:
        """Yield the lines of the text: the counts, then the issues."""
        yield f"{self.source}: {count_noun(self.num_images, 'image')}, {count_noun(self.num_samples, 'sample')}"
        for task, number in sorted(self.tasks.items(), key=lambda item: -item[1]):
            yield f"  {number:8,}  {task}"
        if self.objects:
            labels = ", ".join(f"{label} {number:,}" for label, number in list(self.objects.items())[:_LABELS])
            more = f", and {len(self.objects) - _LABELS:,} more" if len(self.objects) > _LABELS else ""
            yield f"  {sum(self.objects.values()):8,}  objects: {labels}{more}"
        if self.empty_targets:
            yield f"  {self.empty_targets:8,}  empty targets: samples without objects or text"
        if self.ignored_shapes:
            kinds = count_kinds(kind for _, kind in self.ignored_shapes)
            first = self.ignored_shapes[0][0]
            yield f"  {len(self.ignored_shapes):8,}  shapes that are not read: {kinds}; the first in {first}"
        if self.unread_columns:
            yield f"  {len(self.unread_columns):8,}  columns that are not read: {name_columns(self.unread_columns)}"
        if self.ignored_files:
            yield f"  {len(self.ignored_files):8,}  files that are not read as images: {note_files(self.ignored_files)}"
        yield f"  the longest target has at least {self.max_target_tokens:,} tokens"
        examples: defaultdict[IssueKind, list[Issue]] = defaultdict(list)
        for issue in self.issues:
            examples[issue.kind].append(issue)
        for kind, number in self.issue_counts().items():
            yield f"issue: {number:,} {kind}"
            yield from (f"  {issue.where}: {issue.what}" for issue in examples[kind][:_EXAMPLES])
        yield count_noun(len(self.issues), "issue") if self.issues else "no issues"


def report_dataset(
    source: str, rows: Iterable[DatasetRow], columns: ColumnMapping, length: LengthLimit
) -> DatasetReport:
    """Check every row; an error that ends the rows is an issue, unless it comes before the first row."""
    builder = _ReportBuilder(length)
    is_empty = True
    try:
        for row in rows:
            is_empty = False
            builder.add(row, check_row(row, columns, length))
    except UserError as error:
        if not builder.images and not builder.issues:
            raise
        builder.issues.append(Issue(IssueKind.MALFORMED, source, f"{error.what}; the rest was not read"))
    if is_empty and not builder.issues:
        is_csv = source.lower().endswith(".csv")
        hint = "write the names of its columns into its first line" if is_csv else "check that no file of it is missing"
        raise DatasetError(f"{source} contains no rows", hint)
    builder.issues += _duplicate_images(builder.images.values())
    return builder.build(source)


class _ReportBuilder:
    """The counts and issues of the rows that were added so far."""

    def __init__(self, length: LengthLimit) -> None:
        self.images: dict[str, Sample] = {}
        self.issues: list[Issue] = []
        self._length = length
        self._tasks: Counter[str] = Counter()
        self._objects: Counter[str] = Counter()
        self._empty_targets = 0
        self._max_target_tokens = 0
        self._first_row: dict[tuple[str, str, str, str], str] = {}
        self._first_answer: dict[SampleKey, tuple[str, str]] = {}
        self._ignored_shapes: list[tuple[str, str]] = []
        self._ignored_files: list[tuple[str, str]] = []
        self._unread_columns: Counter[str] = Counter()

    def add(self, row: DatasetRow, report: RowReport) -> None:
        """Count a row's samples and objects, and collect its issues."""
        if row.image.id:
            self.images.setdefault(row.image.id, row.image)
        self.issues += report.issues
        for where in row.unlisted_annotations:
            self.issues.append(Issue(IssueKind.UNLISTED, where, "its image is not listed"))
        self._ignored_files += row.ignored_files
        self._unread_columns.update(row.unread_columns)
        self._ignored_shapes += [*((row.where, kind) for kind in row.ignored_shapes), *row.ignored_elsewhere]
        for sample in report.samples:
            task, target = find_task(sample.task), sample.target or ""
            self._tasks[task.name] += 1
            default = sample.input if task.input_type is InputType.WORDS else NO_LABEL
            self._objects.update(item.label or default for item in decode_objects(task.output_type, target))
            self._empty_targets += not target
            self._max_target_tokens = max(self._max_target_tokens, self._length.count(sample))
            first = self._first_row.setdefault((*sample.key, target), row.where)
            if first != row.where:
                what = f"its image, task, input and target are those of {first}"
                self.issues.append(Issue(IssueKind.DUPLICATE, row.where, what))
            elif task.output_type is not OutputType.TEXT:
                other, where = self._first_answer.setdefault(sample.key, (target, row.where))
                if other != target:
                    what = f"its image, task and input are those of {where}, and its objects are others"
                    self.issues.append(Issue(IssueKind.CONTRARY, row.where, what))

    def build(self, source: str) -> DatasetReport:
        """Return the report."""
        num_samples = sum(self._tasks.values())
        if num_samples and self._empty_targets == num_samples:
            what = f"all {num_samples:,} samples train the model to answer nothing"
            self.issues.append(Issue(IssueKind.NO_TARGETS, source, what))
        return DatasetReport(
            source,
            num_images=len(self.images),
            tasks=dict(self._tasks),
            objects=dict(self._objects.most_common()),
            empty_targets=self._empty_targets,
            max_target_tokens=self._max_target_tokens,
            issues=tuple(self.issues),
            ignored_shapes=tuple(self._ignored_shapes),
            ignored_files=tuple(self._ignored_files),
            unread_columns=dict(self._unread_columns),
        )


def _duplicate_images(images: Iterable[Sample]) -> Iterator[Issue]:
    """Find files with the same bytes; only files of the same length are read."""
    by_length: defaultdict[int, list[Path]] = defaultdict(list)
    for sample in images:
        if isinstance(sample.image, Path) and is_file(sample.image):
            by_length[sample.image.stat().st_size].append(sample.image)
    for paths in by_length.values():
        first: dict[bytes, Path] = {}
        for path in paths if len(paths) > 1 else []:
            before = first.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
            if before != path:
                yield Issue(IssueKind.SAME, str(path), f"its bytes equal those of {before}")
