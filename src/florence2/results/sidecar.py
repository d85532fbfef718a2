"""Caption files beside their images, such as `a.txt` for `a.jpg`, and what happens to existing ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from florence2.data.sample import Prediction, Sample
from florence2.files import atomic_write

IfExists = Literal["skip", "overwrite", "append", "prepend"]


@dataclass(frozen=True)
class SidecarWriter:
    """Writes a caption file with `extension` beside each image of `image_dir`."""

    image_dir: Path
    extension: str
    if_exists: IfExists

    def without_sidecar(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples whose caption file is to be written."""
        return (s for s in samples if self.if_exists != "skip" or not self._path(s.id).exists())

    def write(self, prediction: Prediction) -> None:
        """Write the caption file; a prediction with an error leaves the existing file."""
        if prediction.error is not None:
            return
        path = self._path(prediction.file_name)
        text = prediction.text
        if self.if_exists in {"append", "prepend"} and path.exists():
            text = _merge(path.read_text(encoding="utf-8-sig").strip(), text, self.if_exists)
        with atomic_write(path) as file:
            file.write(text + "\n")

    def _path(self, file_name: str) -> Path:
        extension = self.extension if self.extension.startswith((".", "_")) else f".{self.extension}"
        return (self.image_dir / file_name).with_suffix("").with_name(Path(file_name).stem + extension)


def _merge(old: str, new: str, if_exists: IfExists) -> str:
    """Append or prepend the new caption, once: a run that was interrupted may write it again."""
    if if_exists == "append":
        return old if old.endswith(new) else f"{old} {new}".strip()
    return old if old.startswith(new) else f"{new} {old}".strip()
