"""Search and replacement of words in rows: in texts, and in the labels of objects."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from florence2.errors import UserError
from florence2.results.editing.editable_row import ChangedObject, EditableRow, RowChange


@dataclass(frozen=True)
class WordReplacement:
    """Words and what replaces them, taken literally."""

    search: str
    replacement: str
    match_case: bool = True
    full_words: bool = False

    def __post_init__(self) -> None:
        if not self.search:
            raise UserError("there are no words to replace", "type them")

    def apply(self, text: str) -> tuple[str, int]:
        """Return a text with the replacements, and their number."""
        pattern = re.escape(self.search)
        if self.full_words:
            pattern = rf"(?<!\w){pattern}(?!\w)"
        flags = 0 if self.match_case else re.IGNORECASE
        return re.subn(pattern, lambda _: self.replacement, text, flags=flags)

    def changes(self, rows: Iterable[EditableRow]) -> Iterator["ReplacedRow"]:
        """Yield the rows whose words change; rows that cannot be edited or have an error are left out."""
        for row in rows:
            if not row.locked and not row.error and (changed := self._change(row)):
                yield changed

    def _change(self, row: EditableRow) -> "ReplacedRow | None":
        parts = [self.apply(words) for words in row.words]
        number = sum(count for _, count in parts)
        texts = [text for text, _ in parts]
        if number == 0 or texts == list(row.words):
            return None
        change = RowChange(row.index, row.version)
        if row.objects is None:
            change = replace(change, text=texts[0])
        else:
            pairs = enumerate(zip(row.objects, texts, strict=True))
            change = replace(
                change, objects=tuple(ChangedObject(each.kind, text, origin=i) for i, (each, text) in pairs)
            )
        return ReplacedRow(change, number, ", ".join(row.words), ", ".join(texts))


@dataclass(frozen=True)
class ReplacedRow:
    """A row whose words change: the change, the number of replacements, and the words before and after."""

    change: RowChange
    number: int
    before: str
    after: str
