"""Captions beside their pictures: `a.txt` for `a.jpg`, and what to do where one is there already.

Knows no model. A file is replaced at one stroke: a caption on the disk is the old one or the new one, never half.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from florence2.data.sample import Prediction, Sample

IfExists = Literal["skip", "overwrite", "append", "prepend"]


@dataclass(frozen=True)
class SidecarWriter:
    """Where captions go: beside the pictures of `folder`, with `extension`."""

    folder: Path
    extension: str
    if_exists: IfExists

    def without_sidecar(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Pass on the samples whose caption is to be written."""
        return (s for s in samples if self.if_exists != "skip" or not self._path(s.id).exists())

    def write(self, prediction: Prediction) -> None:
        """Write one caption; a prediction with an error leaves what is there."""
        if prediction.error is not None:
            return
        path = self._path(prediction.file_name)
        text = prediction.text
        if self.if_exists in {"append", "prepend"} and path.exists():
            text = _joined(path.read_text(encoding="utf-8-sig").strip(), text, self.if_exists)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)

    def _path(self, file_name: str) -> Path:
        extension = self.extension if self.extension.startswith((".", "_")) else f".{self.extension}"
        return (self.folder / file_name).with_suffix("").with_name(Path(file_name).stem + extension)


def _joined(old: str, new: str, existing: IfExists) -> str:
    """Put the new caption behind or in front of the old one, once: a run that was cut off may write it again."""
    if existing == "append":
        return old if old.endswith(new) else f"{old} {new}".strip()
    return old if old.startswith(new) else f"{new} {old}".strip()
