"""All rows looked at: counts of pictures, tasks and labels, and findings by kind, for people and for programs."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence2.data.columns import ColumnMapping
from florence2.data.formats.annotations import NO_LABEL, DatasetRow
from florence2.data.inspection.issues import Issue, IssueKind, LengthLimit, check_row
from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model.location_grammar import decode_objects
from florence2.model.tasks import InputType, find_task

_SHOWN = 3  # findings of a kind that are named one by one


@dataclass
class DatasetReport:
    """What a dataset holds and what is wrong with it; filled row by row."""

    source: str
    num_images: dict[str, Sample] = field(default_factory=dict)
    tasks: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    empty_targets: int = 0
    max_target_tokens: int = 0
    issues: list[Issue] = field(default_factory=list)
    _asked: dict[tuple[str, str, str, str], str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, source: str, entries: Iterable[DatasetRow], columns: ColumnMapping, length: LengthLimit
    ) -> "DatasetReport":
        """Look at every row; a source that cannot be read on is a finding, unless it gives no row at all."""
        inventory = cls(source)
        try:
            for entry in entries:
                inventory._add(entry, columns, length)
        except UserError as error:
            if not inventory.num_images:
                raise
            inventory.issues.append(Issue(IssueKind.MALFORMED, source, f"{error.what}; what follows was not read"))
        inventory.issues += _same(inventory.num_images)
        return inventory

    def _add(self, entry: DatasetRow, columns: ColumnMapping, length: LengthLimit) -> None:
        looked = check_row(entry, columns, length)
        self.num_images.setdefault(entry.image.id, entry.image)
        self.issues += looked.issues
        for sample in looked.samples:
            task = find_task(sample.task)
            target = sample.target or ""
            self.tasks[task.name] += 1
            name = sample.input if task.input_type is InputType.WORDS else NO_LABEL
            self.objects.update(placed.label or name for placed in decode_objects(task.output_type, target))
            self.empty_targets += not target
            self.max_target_tokens = max(self.max_target_tokens, length.count(target))
            before = self._asked.setdefault((*sample.key, target), entry.where)
            if before != entry.where:
                self.issues.append(Issue(IssueKind.DUPLICATE, entry.where, f"it asks and answers what {before} does"))

    def counts(self) -> dict[IssueKind, int]:
        """Count the findings of each kind."""
        found = Counter(finding.kind for finding in self.issues)
        return {kind: found[kind] for kind in IssueKind if found[kind]}

    def to_json(self) -> dict[str, Any]:
        """Give everything in one object."""
        return {
            "dataset": self.source,
            "pictures": len(self.num_images),
            "samples": self.tasks.total(),
            "tasks": dict(self.tasks),
            "objects": dict(self.objects.most_common()),
            "without_objects": self.empty_targets,
            "longest": self.max_target_tokens,
            "wrong": {kind.name.lower(): number for kind, number in self.counts().items()},
            "findings": [{"kind": f.kind.name.lower(), "where": f.where, "what": f.what} for f in self.issues],
        }

    def lines(self) -> Iterator[str]:
        """Say it for people: what there is, then what is wrong."""
        yield f"{self.source}: {len(self.num_images):,} pictures, {self.tasks.total():,} samples"
        for task, number in self.tasks.most_common():
            yield f"  {number:8,}  {task}"
        if self.objects:
            labels = ", ".join(f"{label} {number:,}" for label, number in self.objects.most_common(12))
            more = f", and {len(self.objects) - 12:,} more" if len(self.objects) > 12 else ""
            yield f"  {self.objects.total():8,}  objects: {labels}{more}"
        if self.empty_targets:
            yield f"  {self.empty_targets:8,}  without objects: there the model learns to say nothing"
        yield f"  the longest answer has at least {self.max_target_tokens:,} tokens"
        named: defaultdict[IssueKind, list[Issue]] = defaultdict(list)
        for finding in self.issues:
            named[finding.kind].append(finding)
        for kind, number in self.counts().items():
            yield f"wrong: {number:,} {kind}"
            yield from (f"  {each.where}: {each.what}" for each in named[kind][:_SHOWN])
        yield "nothing is wrong" if not self.issues else f"{len(self.issues):,} things are wrong"


def _same(images: dict[str, Sample]) -> Iterator[Issue]:
    """Find files with the same bytes; only files of the same length are read."""
    by_length: defaultdict[int, list[Path]] = defaultdict(list)
    for sample in images.values():
        if isinstance(sample.image, Path) and sample.image.is_file():
            by_length[sample.image.stat().st_size].append(sample.image)
    for paths in by_length.values():
        first: dict[bytes, Path] = {}
        for path in paths if len(paths) > 1 else []:
            before = first.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
            if before != path:
                yield Issue(IssueKind.SAME, str(path), f"its bytes are those of {before}")
