"""What goes in and what comes out: `Sample` and `Prediction`, one line of JSON.

Knows no torch, no model, and not where samples come from.
"""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2.data.picture import (
    PICTURE_EXTENSIONS,
    Picture,
    PictureError,
    PictureSource,
    Size,
    open_picture,
    picture_size,
)

__all__ = [
    "PICTURE_EXTENSIONS",
    "Picture",
    "PictureError",
    "PictureSource",
    "Prediction",
    "Sample",
    "Size",
    "folder_between",
    "open_picture",
    "picture_size",
    "split",
]


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One question about one picture, with its answer where it is known.

    `id` is the picture's posix path relative to its source. Several samples may ask about one picture: `key` tells
    them apart. `picture` is opened late; a callable returns one of the other kinds and must survive pickling.
    `task` is a task token or any other prompt, `target` the text the model shall learn to say.
    """

    id: str
    picture: PictureSource | Callable[[], PictureSource]
    task: str
    input: str = ""
    target: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Name this question within its source: id, task and input."""
        return self.id, self.task, self.input

    def source(self) -> PictureSource:
        """Give what the picture is read from."""
        return self.picture() if callable(self.picture) else self.picture

    def open(self, at_least: Size | None = None) -> Picture:
        """Open the picture; `at_least` as in `open_picture`."""
        return open_picture(self.source(), at_least=at_least, name=self._name())

    def size(self) -> Size:
        """Read (width, height) of the upright picture without decoding it."""
        return picture_size(self.source(), name=self._name())

    def _name(self) -> str:
        return "" if isinstance(self.picture, Path) else self.id


@dataclass(frozen=True)
class Prediction:
    """What the model said about one picture, or the `error` that kept it from looking.

    `text` is the answer as generated, location tokens kept; `answer` the same read in pixels, for structured tasks.
    """

    file_name: str
    task: str
    input: str = ""
    text: str = ""
    answer: Any = None
    num_tokens: int = 0
    score: float | None = None
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Match the `key` of the sample this answers."""
        return self.file_name, self.task, self.input

    def to_json(self, folder: str = ".") -> dict[str, Any]:
        """Give the row that is written; `folder` leads from the written file to the pictures (`folder_between`)."""
        row: dict[str, Any] = {"file_name": self.file_name, "text": self.text, "task": self.task}
        if self.input:
            row["input"] = self.input
        if self.answer is not None and not isinstance(self.answer, str):
            row["answer"] = self.answer
        row |= {"num_tokens": self.num_tokens, "score": self.score}
        if folder != ".":
            row["folder"] = folder
        if self.error is not None:
            row["error"] = self.error
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Prediction":
        """Read a row back; keys that are not ours are left aside."""
        text = str(row.get("text") or "")
        error = row.get("error")
        return cls(
            file_name=str(row["file_name"]),
            task=str(row.get("task") or ""),
            input=str(row.get("input") or ""),
            text=text,
            answer=row.get("answer", text if error is None else None),
            num_tokens=int(row.get("num_tokens") or 0),
            score=row.get("score"),
            error=error,
        )


def folder_between(written: Path, pictures: Path) -> str:
    """Lead from the folder of the file `written` to the folder `pictures`: posix, relative where it can be."""
    start, goal = written.absolute().parent, pictures.absolute()
    try:
        return Path(os.path.relpath(goal.resolve(), start.resolve())).as_posix()
    except ValueError:  # another drive
        return goal.as_posix()


def split(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Part samples into (training, validation), all of one picture on one side, alike for alike seeds.

    At least one picture goes to each side where there are two; the order of samples is kept.
    """
    ids = sorted({sample.id for sample in samples})
    if fraction <= 0 or len(ids) < 2:
        return list(samples), []
    held = set(random.Random(seed).sample(ids, min(max(round(len(ids) * fraction), 1), len(ids) - 1)))
    return [s for s in samples if s.id not in held], [s for s in samples if s.id in held]
