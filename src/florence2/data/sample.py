"""What goes in and what comes out: `Sample` and `Prediction`, one line of JSON.

Knows no torch, no model, and not where samples come from.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from florence2.data.image import (
    IMAGE_EXTENSIONS,
    ImageError,
    ImageSource,
    OpenedImage,
    Size,
    image_size,
    open_image,
)
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
        return cls(*(str(row.get(name) or "") for name in ("file_name", "task", "input")))


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One question about one picture, with its answer where it is known.

    `id` is the picture's posix path relative to its source. Several samples may ask about one picture: `key` tells
    them apart. `picture` is opened late; a callable returns one of the other kinds and must survive pickling.
    `task` is a task token or any other prompt, `target` the text the model shall learn to say. `then` says what to ask
    next about the same picture, once this is answered; it must survive pickling, too.
    """

    id: str
    image: ImageSource | Callable[[], ImageSource]
    task: str
    input: str = ""
    target: str | None = None
    follow_up: Callable[["Prediction"], Iterable["Sample"]] | None = None

    @property
    def key(self) -> SampleKey:
        """Return the identity of this sample within its source."""
        return SampleKey(self.id, self.task, self.input)

    def source(self) -> ImageSource:
        """Give what the picture is read from."""
        return self.image() if callable(self.image) else self.image

    def open(self, min_size: Size | None = None) -> OpenedImage:
        """Open the picture; `at_least` as in `open_picture`."""
        return open_image(self.source(), min_size=min_size, name=self._name())

    def size(self) -> Size:
        """Read (width, height) of the upright picture without decoding it."""
        return image_size(self.source(), name=self._name())

    def _name(self) -> str:
        return "" if isinstance(self.image, Path) else self.id


@dataclass(frozen=True)
class Prediction:
    """What the model said about one picture, or the `error` that kept it from looking.

    `text` is the answer as generated, location tokens kept; `answer` the same read in pixels, for structured tasks.
    `alternatives` are further answers to the same question, where several were asked for.
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

    @property
    def key(self) -> SampleKey:
        """Return the key of the sample that this answers."""
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
        return {**answer, "num_tokens": self.num_tokens, "score": self.score}

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
        )


def _read_answer(task: str, value: Any) -> Answer | None:
    output_type = split_prompt(task)[0].output_type
    if output_type is OutputType.TEXT or not isinstance(value, Mapping):
        return None
    return Answer.from_dict(value, output_type)


def relative_image_dir(written: Path, images: Path) -> str:
    """Lead from the folder of the file `written` to the folder `pictures`: posix, relative where it can be."""
    start, goal = written.absolute().parent, images.absolute()
    try:
        return Path(os.path.relpath(goal.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive
        return goal.as_posix()


class SkipReason(StrEnum):
    """Why a picture is no sample; the value reads behind "pictures that"."""

    NO_CAPTION = "have no caption"
    ABSENT = "do not exist"
    UNREADABLE = "cannot be read"
    FAILED = "could not be captioned before"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture that was left out: its id, why, how to name it to the user, and how to mend it."""

    id: str
    reason: SkipReason
    where: str
    hint: str = ""


@dataclass(frozen=True, eq=False)
class ResolvedDataset:
    """What a source holds: samples, and what had to be left out.

    `source` is how the user named it, `root` the folder that ids are relative to (none for datasets).
    """

    source: str
    root: Path | None
    samples: list[Sample]
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Count the pictures, those left out included."""
        return len({sample.id for sample in self.samples} | {skipped.id for skipped in self.skipped})

    def summary(self) -> str:
        """Say in one line what was found and what was left out."""
        images = len({sample.id for sample in self.samples})
        said = f"{_counted(len(self.samples), 'sample')} from {_counted(images, 'picture')} in {self.source}"
        for why in SkipReason:
            named = [skipped for skipped in self.skipped if skipped.reason is why]
            if named:
                said += f"; left out: {len(named)} that {why}, the first is {named[0].where}"
        return said


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")
