"""The input and the output of every run: `Sample`, and `Prediction` with its row of JSON."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from florence2.data.folders.image_names import IMAGE_EXTENSIONS
from florence2.data.image import ImageError, ImageSource, OpenedImage, Size, image_size, open_image
from florence2.log import count_kinds, count_noun, name_columns, note_files
from florence2.model.answer import Answer
from florence2.model.tasks import OutputType, split_prompt

__all__ = [
    "IMAGE_EXTENSIONS",
    "ImageError",
    "ImageSource",
    "OpenedImage",
    "Prediction",
    "ResolvedDataset",
    "Sample",
    "SampleKey",
    "Size",
    "SkipReason",
    "Skipped",
    "image_size",
    "open_image",
    "relative_image_dir",
]


class SampleKey(NamedTuple):
    """The identity of a sample within its source: the image's id, the task and its input."""

    id: str
    task: str
    input: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "SampleKey":
        """Read the key of a prediction's row."""
        return cls(str(row.get("file_name") or ""), str(row.get("task") or ""), str(row.get("input") or ""))


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One image with one task, and the target where it is known.

    `id` is the image's posix path relative to its source. Several samples may have one image; their `key` differs.
    `image` is opened late; a callable returns another image source and must survive pickling. `task` is a task token
    or any other prompt, `target` the text to train on. `follow_up` returns the next samples about the same image once
    this one is predicted; it must survive pickling, too. `reference` is the target in pixels as the dataset has it,
    off the grid of location tokens, where metrics need it (`ColumnMapping.keep_answers`). `doubts` name what is
    probably wrong with the target, such as a box outside the image.
    """

    id: str
    image: ImageSource | Callable[[], ImageSource]
    task: str
    input: str = ""
    target: str | None = None
    follow_up: Callable[["Prediction"], Iterable["Sample"]] | None = None
    reference: Answer | None = None
    doubts: tuple[str, ...] = ()

    @property
    def key(self) -> SampleKey:
        """Return the identity of this sample within its source."""
        return SampleKey(self.id, self.task, self.input)

    def source(self) -> ImageSource:
        """Return what the image is read from."""
        return self.image() if callable(self.image) else self.image

    def open(self, min_size: Size | None = None) -> OpenedImage:
        """Open the image; `min_size` as in `open_image`."""
        return open_image(self.source(), min_size=min_size, name=self.name)

    def size(self) -> Size:
        """Read (width, height) of the upright image without decoding it."""
        return image_size(self.source(), name=self.name)

    @property
    def name(self) -> str:
        """Return the name of the image in messages: its path, or its id."""
        return str(self.image) if isinstance(self.image, Path) else self.id


@dataclass(frozen=True)
class Prediction:
    """The output of the model for one sample, or the `error` that prevented it.

    `text` is the generated text with its location tokens; `answer` holds the positions in pixels, None for text tasks.
    `alternatives` are further sequences for the same sample, where several were requested. `num_removed` counts the
    objects that `--min_score` removed.
    """

    file_name: str
    task: str
    input: str = ""
    text: str = ""
    answer: Answer | None = None
    num_tokens: int = 0
    score: float | None = None
    error: str | None = None
    alternatives: tuple["Prediction", ...] = ()
    num_removed: int = 0

    @property
    def key(self) -> SampleKey:
        """Return the key of the predicted sample."""
        return SampleKey(self.file_name, self.task, self.input)

    def to_json(self, image_dir: str = ".") -> dict[str, Any]:
        """Return the JSON row; `image_dir` is the path from the written file to the images (`relative_image_dir`)."""
        row: dict[str, Any] = {"file_name": self.file_name, "text": self.text, "task": self.task}
        if self.input:
            row["input"] = self.input
        row |= self._output_columns()
        if self.alternatives:
            row["alternatives"] = [{"text": each.text, **each._output_columns()} for each in self.alternatives]
        if image_dir != ".":
            row["image_dir"] = image_dir
        if self.error is not None:
            row["error"] = self.error
        return row

    def _output_columns(self) -> dict[str, Any]:
        answer = {} if self.answer is None else {"answer": self.answer.to_dict()}
        removed = {"removed_objects": self.num_removed} if self.num_removed else {}
        return {**answer, "num_tokens": self.num_tokens, "score": self.score, **removed}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Prediction":
        """Read a row back; other keys are ignored. Raises UserError where its `answer` is malformed."""
        key = SampleKey.from_row(row)
        names = {"file_name": key.id, "task": key.task, "input": key.input}
        return cls(
            *key,
            text=str(row.get("text") or ""),
            answer=_read_answer(key.task, row.get("answer")),
            num_tokens=int(row.get("num_tokens") or 0),
            score=row.get("score"),
            error=row.get("error"),
            alternatives=tuple(cls.from_json({**each, **names}) for each in row.get("alternatives", ())),
            num_removed=int(row.get("removed_objects") or 0),
        )


def _read_answer(task: str, value: Any) -> Answer | None:
    output_type = split_prompt(task)[0].output_type
    if output_type is OutputType.TEXT or not isinstance(value, Mapping):
        return None
    return Answer.from_dict(value, output_type)


def relative_image_dir(written: Path, images: Path) -> str:
    """Return the posix path from the folder of the file `written` to the folder `images`, relative where possible."""
    start, target = written.absolute().parent, images.absolute()
    try:
        return Path(os.path.relpath(target.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive
        return target.as_posix()


class SkipReason(StrEnum):
    """Why an image is skipped; the value continues the phrase "images that"."""

    MALFORMED = "have a row that cannot be read"
    NO_CAPTION = "have no caption"
    ABSENT = "do not exist"
    UNREADABLE = "cannot be read"
    UNREADABLE_CAPTION = "have a caption that cannot be read"
    FAILED = "could not be captioned before"


# Reasons of which `Skipped.where` is a sentence already.
SENTENCE_REASONS = (SkipReason.UNREADABLE, SkipReason.UNREADABLE_CAPTION, SkipReason.MALFORMED)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A skipped image: its id, the reason, its name in messages, and how to fix it."""

    id: str
    reason: SkipReason
    where: str
    hint: str = ""


@dataclass(frozen=True, eq=False)
class ResolvedDataset:
    """The samples of a source, and its skipped images.

    `source` is the name that the user passed, `root` the folder that ids are relative to (None for hub datasets).
    `ignored_shapes` are the places and kinds of annotations that the reader does not read, such as points;
    `unread_columns` counts the rows that have each column without a meaning.
    `ignored_files` are paths and kinds of files that may be meant as images, such as pipes or unknown extensions;
    `failed_shards` and `failed_folders` are shards and subfolders that cannot be read, with their errors.
    """

    source: str
    root: Path | None
    samples: Sequence[Sample]
    skipped: list[Skipped] = field(default_factory=list)
    ignored_shapes: Sequence[tuple[str, str]] = ()
    ignored_files: Sequence[tuple[str, str]] = ()
    failed_shards: Sequence[tuple[str, str]] = ()
    failed_folders: Sequence[tuple[str, str]] = ()
    unread_columns: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """The number of images, with those skipped."""
        return len({sample.id for sample in self.samples} | {skipped.id for skipped in self.skipped})

    def summary(self) -> str:
        """Return one line with the numbers of samples, images and skipped images."""
        num_images = len({sample.id for sample in self.samples})
        line = f"{count_noun(len(self.samples), 'sample')} from {count_noun(num_images, 'image')} in {self.source}"
        for reason in SkipReason:
            skipped = [each for each in self.skipped if each.reason is reason]
            if skipped:
                first = f"{':' if reason in SENTENCE_REASONS else ' is'} {skipped[0].where}"
                line += f"; skipped: {len(skipped)} that {reason}, the first{first}"
        if self.ignored_shapes:
            line += f"; not read: {count_kinds(kind for _, kind in self.ignored_shapes)}"
            line += f", the first in {self.ignored_shapes[0][0]}"
        if self.unread_columns:
            line += f"; columns that are not read: {name_columns(self.unread_columns)}"
        if self.ignored_files:
            line += f"; {self.ignored_files_note()}"
        return line + self._doubts_note()

    def doubts(self) -> list[tuple[str, str]]:
        """Return image and kind of what is probably wrong, and of each target that differs from that of its request."""
        found = [(sample.name, doubt) for sample in self.samples for doubt in sample.doubts]
        targets: dict[SampleKey, str | None] = {}
        for sample in self.samples:
            is_located = split_prompt(sample.task)[0].output_type is not OutputType.TEXT
            if is_located and targets.setdefault(sample.key, sample.target) != sample.target:
                found.append((sample.name, "further answer to the same request"))
        return found

    def _doubts_note(self) -> str:
        """Count the targets that are empty, and those that are doubtful."""
        num_empty = sum(sample.target == "" for sample in self.samples)
        note = f"; {count_noun(num_empty, 'empty target')}" if num_empty else ""
        if doubts := self.doubts():
            note += f"; doubtful: {count_kinds(kind for _, kind in doubts)}, the first in {doubts[0][0]}"
            note += " (`florence2 data check` lists them)"
        return note

    def ignored_files_note(self) -> str:
        """Count the ignored files by kind and name the first; "" if there are none."""
        if not self.ignored_files:
            return ""
        return f"files that are not read as images: {note_files(self.ignored_files)}"
