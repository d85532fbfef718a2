"""Caption files beside their images, such as `a.txt` for `a.jpg`, and what happens to existing ones."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from florence2.data.folders.image_names import is_image_name
from florence2.data.folders.listing import read_text
from florence2.data.sample import Prediction, Sample
from florence2.errors import DatasetError, OptionError
from florence2.files import atomic_write

LacksLine = Callable[[Sample, Path], bool]
IfExists = Literal["skip", "overwrite", "append", "prepend"]


@dataclass(frozen=True)
class SidecarWriter:
    """Writes a caption file with `extension` beside each image of `image_dir`."""

    image_dir: Path
    extension: str
    if_exists: IfExists

    def check_samples(self, samples: Iterable[Sample]) -> None:
        """Raise before prediction if two images would have the same caption file, or if it would be an image."""
        if is_image_name(f"a{self.extension}"):
            raise OptionError(f"`--sidecar {self.extension}` would replace images", "pass `--sidecar .txt`")
        images: dict[Path, str] = {}
        for sample in samples:
            path = self._path(sample.id)
            first = images.setdefault(path, sample.id)
            if first != sample.id:
                raise OptionError(
                    f"{first} and {sample.id} would have the same caption file {path.name}",
                    "rename one of them, or remove `--sidecar`",
                )

    def without_sidecar(self, samples: Iterable[Sample], lacks_line: LacksLine = lambda *_: False) -> Iterator[Sample]:
        """Yield the samples without a caption file of their own, if those are skipped.

        `lacks_line` returns whether the caption file of a sample was written by a run that was interrupted before it
        wrote the line: such a sample is predicted again, and its caption file stays.
        """
        for sample in samples:
            path = self._path(sample.id)
            if self.if_exists != "skip" or not os.path.exists(path) or lacks_line(sample, path):  # noqa: PTH110
                yield sample

    def write(self, prediction: Prediction) -> None:
        """Write the caption file; a prediction with an error leaves the existing file.

        Raises DatasetError for an existing file that would be extended and is not UTF-8, which stays as it is.
        """
        if prediction.error is not None:
            return
        path = self._path(prediction.file_name)
        if self.if_exists == "skip" and path.exists():
            return
        text = prediction.text
        if self.if_exists in {"append", "prepend"} and path.exists():
            text = _merge(_read_caption(path), text, self.if_exists)
        with atomic_write(path) as file:
            file.write(text + "\n")

    def _path(self, file_name: str) -> Path:
        extension = self.extension if self.extension.startswith((".", "_")) else f".{self.extension}"
        return (self.image_dir / file_name).with_suffix("").with_name(Path(file_name).stem + extension)


def _read_caption(path: Path) -> str:
    text = read_text(path)
    if "\0" in text:
        raise DatasetError(f"{path} is not UTF-8 text (it has null bytes)", "save it as UTF-8")
    return text.strip()


def _merge(old: str, new: str, if_exists: IfExists) -> str:
    """Append or prepend the new caption, once: a run that was interrupted may write it again."""
    if if_exists == "append":
        return old if f" {old}".endswith(f" {new}") else f"{old} {new}".strip()
    return old if f"{old} ".startswith(f"{new} ") else f"{new} {old}".strip()
