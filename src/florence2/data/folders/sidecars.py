"""Sidecar captions: text files that share the stem of an image in the same folder, as `a.jpg` and `a.txt`.

The text of the file is the caption; line breaks become spaces unless `keep_lines` is set.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from florence2.data.folders.listing import Listing, read_lines
from florence2.data.inspection.target_doubts import text_doubts
from florence2.data.sample import Sample, Skipped, SkipReason
from florence2.errors import DatasetError
from florence2.model.tasks import InputType, split_prompt


@dataclass(frozen=True)
class Sidecars:
    """The names of sidecar files: extensions in order of preference, and a suffix between the image's stem and them."""

    extensions: tuple[str, ...] = (".txt", ".caption")
    suffix: str = ""
    keep_lines: bool = False

    @classmethod
    def from_extension(cls, extension: str, keep_lines: bool = False) -> "Sidecars":
        """Prefer `extension` to `.caption`; `_old.txt` means `a_old.txt` beside `a.jpg`."""
        suffix, _, last = extension.rpartition(".")
        return cls(tuple(dict.fromkeys([f".{last.lower()}", ".caption"])), suffix, keep_lines)

    def name_by_image(self, listing: Listing) -> dict[str, str]:
        """Map each image of a folder that has a sidecar to the sidecar's name.

        `a.jpg` has `a.txt`, else `a.jpg.txt`, else `A.txt` where one file alone differs in the case of letters.
        """
        by_stem, images = self._name_by_stem(listing), listing.images()
        found: dict[str, str] = {}
        for name in images:
            stem = unicodedata.normalize("NFC", name.rpartition(".")[0])
            if sidecar := by_stem.get(stem) or by_stem.get(unicodedata.normalize("NFC", name)):
                found[name] = sidecar
        if len(found) < len(images):
            others = _group_by_folded(by_stem, except_for=set(found.values()))
            without = _group_by_folded({name.rpartition(".")[0]: name for name in images if name not in found}, set())
            found |= {
                names[0]: others[stem][0]
                for stem, names in without.items()
                if len(names) == 1 and len(others.get(stem, ())) == 1
            }
        return found

    def _name_by_stem(self, listing: Listing) -> dict[str, str]:
        """Map the image stem of each sidecar in a folder, in normalization form NFC, to the sidecar's name."""
        found: dict[str, str] = {}
        for preferred in self.extensions:
            for name in listing.names:
                stem, _, extension = name.rpartition(".")
                if f".{extension.lower()}" == preferred and stem.endswith(self.suffix):
                    image_stem = stem[: len(stem) - len(self.suffix)]
                    found.setdefault(unicodedata.normalize("NFC", image_stem), name)
        return found

    def read(self, path: Path) -> str:
        """Read a caption."""
        lines = [line.strip() for line in read_lines(path)]
        return ("\n" if self.keep_lines else " ").join(line for line in lines if line)


def _group_by_folded(names: Mapping[str, str], except_for: Collection[str]) -> dict[str, list[str]]:
    """Group names by their keys without the case of letters."""
    groups: dict[str, list[str]] = {}
    for key, name in names.items():
        if name not in except_for:
            groups.setdefault(unicodedata.normalize("NFC", key).casefold(), []).append(name)
    return groups


def is_yolo_text(text: str) -> bool:
    """Return whether every line of a text is a class and at least four fractions of an image's sides."""
    if not text.lstrip()[:1].isdecimal():
        return False
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return bool(lines) and all(
        len(fields) >= 5
        and re.fullmatch(r"\d+", fields[0])
        and all(re.fullmatch(r"[01](\.\d*)?|\.\d+|\d(\.\d+)?e-\d+", field) for field in fields[1:])
        for fields in lines
    )


def captioned_images(
    listings: Sequence[Listing], *, task: str, sidecars: Sidecars, known: Collection[str] = ()
) -> tuple[list[Sample], list[Skipped]]:
    """Pair the images of listed folders with their sidecars, except for the ids in `known`."""
    parsed_task, task_input = split_prompt(task)
    if parsed_task.input_type is not InputType.NOTHING and not task_input:
        raise DatasetError(
            f"the task `{parsed_task.name}` needs {parsed_task.input_type} for each image, and a sidecar has none",
            'list the images in a JSONL with "task", "input" and "text"',
        )
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for listing in listings:
        sidecar_names = sidecars.name_by_image(listing)
        for name in (name for name in listing.images() if listing.id(name) not in known):
            try:
                caption = sidecars.read(listing.path / sidecar_names[name]) if name in sidecar_names else ""
            except DatasetError as error:
                skipped.append(Skipped(listing.id(name), SkipReason.UNREADABLE_CAPTION, error.what, error.hint))
                continue
            if is_yolo_text(caption):
                what = f"{listing.path / sidecar_names[name]} has labels of YOLO, not a caption"
                raise DatasetError(what, "list the names of classes in data.yaml")
            if caption:
                doubts, image = text_doubts(parsed_task, [caption]), listing.path / name
                samples.append(
                    Sample(listing.id(name), image, parsed_task.token, task_input, target=caption, doubts=doubts)
                )
            else:
                default = name.rpartition(".")[0] + sidecars.suffix + sidecars.extensions[0]
                sidecar = listing.path / sidecar_names.get(name, default)
                skipped.append(
                    Skipped(listing.id(name), SkipReason.NO_CAPTION, str(listing.path / name), f"write {sidecar}")
                )
    return samples, skipped
