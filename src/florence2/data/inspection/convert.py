"""A dataset written anew in another format; the source is only read.

    jsonl    metadata.jsonl beside the pictures: every task, boxes in pixels
    coco     _annotations.coco.json beside the pictures: boxes and outlines
    yolo     data.yaml, images/, labels/: boxes, or outlines where every object has one
    folder   a text file beside each picture: captions
    shards   tars of pictures and rows: every task

Pictures are linked (a second name for the same bytes on disk) or copied, never moved; what cannot be linked is copied.
"""

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from florence2.data.columns import METADATA_NAMES, Columns
from florence2.data.formats.annotations import Annotated, Entry, Thing, things_of
from florence2.data.formats.coco import LIST_NAME, write_coco
from florence2.data.formats.shards import write_shards
from florence2.data.formats.yolo import write_yolo
from florence2.data.sample import Sample
from florence2.data.tables import Row
from florence2.errors import UserError
from florence2.model.tasks import Answers, Takes, split_prompt

To = Literal["jsonl", "coco", "yolo", "folder", "shards"]
How = Literal["link", "copy"]


@dataclass
class Told:
    """All that is known about one picture, in the words of our own rows."""

    picture: Sample
    name: str
    rows: list[Row] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    about_objects: bool = False


@dataclass(frozen=True)
class Converted:
    """What was written, and how many rows were left out for which reason."""

    pictures: int
    rows: int
    left_out: Counter[str]

    def lines(self) -> Iterator[str]:
        """Say it."""
        yield f"{self.pictures:,} pictures with {self.rows:,} answers are written"
        yield from (f"left out: {number:,} {why}" for why, number in self.left_out.items())


def convert(entries: Iterable[Entry], columns: Columns, folder: Path, to: To, how: How = "link") -> Converted:
    """Write a dataset into a folder that is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already", "name a new folder")
    left_out: Counter[str] = Counter()
    told = list(_collected(entries, columns, left_out).values())
    kept = [each for each in told if to != "folder" or each.captions]
    if to in ("coco", "yolo") and not any(each.about_objects for each in kept):
        kept = []
    if not kept:
        raise UserError(f"nothing of it can be written as {to}", "choose another --to, or another --task")
    refuse_shared_stems(to, (each.name for each in kept))
    folder.mkdir(parents=True, exist_ok=True)
    rows = _WRITERS[to](kept, folder, how, left_out)
    return Converted(len(kept), rows, +left_out)


def _collected(entries: Iterable[Entry], columns: Columns, left_out: Counter[str]) -> dict[str, Told]:
    told: dict[str, Told] = {}
    for entry in entries:
        try:
            if not entry.there:
                raise UserError("a picture does not exist")
            size = entry.picture.size()
            one = told.get(entry.picture.id) or Told(entry.picture, _named(entry.picture))
            _add(one, entry, columns, lambda size=size: size)  # type: ignore[misc]
            told[entry.picture.id] = one
        except UserError:
            left_out["rows that `florence2 data check` finds wrong"] += 1
    return told


def _add(told: Told, entry: Entry, columns: Columns, size: Callable[[], tuple[int, int]]) -> None:
    task, asked = columns.asked_by(entry.row, entry.where)
    texts, answer = columns.texts_of(entry.row, entry.where), entry.row.get("answer")
    if not texts and not isinstance(answer, dict | str):
        raise UserError(f"{entry.where} has no answer")
    if isinstance(answer, str):
        texts, answer = texts or [answer.strip()], None
    row: Row = {"file_name": told.name, "task": task.token}
    if asked:
        row["input"] = asked
    if texts:
        row["text"] = texts[0] if len(texts) == 1 else texts
    if answer is not None:
        row["answer"] = answer
    things = things_of(task, asked, answer, texts[0] if texts else "", size)
    if things is None and task.takes is Takes.NOTHING:
        told.captions += texts
    told.about_objects |= things is not None
    told.things += [thing for thing in things or [] if thing not in told.things]
    told.rows.append(row)


def _named(picture: Sample) -> str:
    """Name the file that is written: the id, with an extension where a dataset gives none."""
    source = picture.source()
    if isinstance(source, Path) or Path(picture.id).suffix:
        return picture.id
    if isinstance(source, Image.Image):
        return f"{picture.id}.png"
    with Image.open(io.BytesIO(source)) as image:
        return f"{picture.id}.{(image.format or 'png').lower()}"


def _encoded(picture: Sample) -> bytes:
    source = picture.source()
    if isinstance(source, Path):
        return source.read_bytes()
    if isinstance(source, bytes):
        return source
    encoded = io.BytesIO()
    source.save(encoded, "PNG")
    return encoded.getvalue()


def _put(picture: Sample, path: Path, how: How) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = picture.source()
    if not isinstance(source, Path):
        path.write_bytes(_encoded(picture))
        return
    if how == "link":
        try:
            os.link(source.resolve(), path)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(source, path)
    else:
        shutil.copy2(source, path)


def _jsonl(told: list[Told], folder: Path, how: How, _: Counter[str]) -> int:
    rows = [row for each in told for row in each.rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / METADATA_NAMES[0]).write_text(text, encoding="utf-8")
    for each in told:
        _put(each.picture, folder / each.name, how)
    return len(rows)


def _annotated(told: Told, left_out: Counter[str]) -> Annotated:
    words = len([row for row in told.rows if split_prompt(row["task"])[0].answers is Answers.TEXT])
    left_out["answers in words"] += words if not told.things else 0
    return Annotated(told.name, told.things, told.picture.size())


def _coco(told: list[Told], folder: Path, how: How, left_out: Counter[str]) -> int:
    write_coco(folder / LIST_NAME, [_annotated(each, left_out) for each in told])
    for each in told:
        _put(each.picture, folder / each.name, how)
    return sum(len(each.things) for each in told)


def _yolo(told: list[Told], folder: Path, how: How, left_out: Counter[str]) -> int:
    for each in told:
        each.name = f"images/{each.name.removeprefix('images/')}"
        _put(each.picture, folder / each.name, how)
    left_out["parts of outlines, since a line of YOLO holds one"] += write_yolo(
        folder, [_annotated(each, left_out) for each in told]
    )
    return sum(len(each.things) for each in told)


def _folder(told: list[Told], folder: Path, how: How, left_out: Counter[str]) -> int:
    for each in told:
        _put(each.picture, folder / each.name, how)
        (folder / each.name).with_suffix(".txt").write_text(each.captions[0] + "\n", encoding="utf-8")
        left_out["answers that are no caption, or a second one"] += len(each.rows) - 1
    return len(told)


def _shards(told: list[Told], folder: Path, _: How, __: Counter[str]) -> int:
    def bare(rows: list[Row]) -> list[Row]:
        return [{key: value for key, value in row.items() if key != "file_name"} for row in rows]

    write_shards(folder, ((each.name, _encoded(each.picture), bare(each.rows)) for each in told))
    return sum(len(each.rows) for each in told)


def refuse_shared_stems(to: To, names: Iterable[str]) -> None:
    """Refuse pictures whose text files would be one, in the formats that have one beside each picture."""
    stems: dict[str, str] = {}
    for name in names if to in ("yolo", "folder") else ():
        before = stems.setdefault(str(Path(name).with_suffix("")), name)
        if before != name:
            raise UserError(f"{before} and {name} would share one text file", "rename one of them")


_WRITERS: dict[str, Callable[[list[Told], Path, How, Counter[str]], int]] = {
    "jsonl": _jsonl,
    "coco": _coco,
    "yolo": _yolo,
    "folder": _folder,
    "shards": _shards,
}
