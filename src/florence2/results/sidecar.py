"""Caption files beside their images, such as `a.txt` for `a.jpg`, and what happens to existing ones."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from florence2.data.folders.image_names import is_image_name
from florence2.data.folders.listing import read_text
from florence2.data.listed.digest_set import DigestSet, digest_key
from florence2.data.listed.listed_samples import sample_keys
from florence2.data.sample import Prediction, Sample, SampleKey
from florence2.errors import DatasetError, OptionError
from florence2.files import atomic_write, path_inside

LacksLine = Callable[[SampleKey, Path], bool]
IfExists = Literal["skip", "overwrite", "append", "prepend"]


@dataclass(frozen=True)
class SidecarWriter:
    """Writes a caption file with `extension` beside each image of `image_dir`."""

    image_dir: Path
    extension: str
    if_exists: IfExists

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raise before prediction if two images would have the same caption file, or if it would be an image."""
        if not self.extension or PurePosixPath(self.extension.replace("\\", "/")).name != self.extension:
            raise OptionError(f"`--sidecar {self.extension}` is not an extension", "pass `--sidecar .txt`")
        if is_image_name(f"a{self.extension}"):
            raise OptionError(f"`--sidecar {self.extension}` would replace images", "pass `--sidecar .txt`")
        paths, last = DigestSet(), ""
        for image_id, *_ in sample_keys(samples):
            if image_id != last and not paths.add(digest_key(str(path := self._path(image_id)))):
                first = next(each for each, *_ in sample_keys(samples) if self._path(each) == path)
                if first != image_id:
                    raise OptionError(
                        f"{first} and {image_id} would have the same caption file {path.name}",
                        "rename one of them, or remove `--sidecar`",
                    )
            last = image_id

    def mask_existing(
        self, samples: Sequence[Sample], mask: bytearray, lacks_line: LacksLine = lambda *_: False
    ) -> None:
        """Write 0 into a mask for each sample with a caption file of its own, if those are skipped.

        `lacks_line` returns whether the caption file of a sample was written by a run that was interrupted before it
        wrote the line: such a sample is predicted again, and its caption file stays.
        """
        if self.if_exists != "skip":
            return
        for index, key in enumerate(sample_keys(samples)):
            path = self._path(key.id)
            if mask[index] and os.path.exists(path) and not lacks_line(key, path):  # noqa: PTH110
                mask[index] = 0

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
        folder, slash, name = file_name.rpartition("/")
        return path_inside(self.image_dir, f"{folder}{slash}{PurePosixPath(name).stem}{extension}")


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
