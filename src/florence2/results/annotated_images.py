"""Annotated images, one file per prediction: `--save_images DIR`."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

from florence2.data.listed.digest_set import DigestSet, digest_key
from florence2.data.listed.listed_images import ListedImages
from florence2.data.listed.listed_samples import ListedSamples
from florence2.data.sample import Prediction, Sample
from florence2.files import path_inside
from florence2.model.answer import Answer
from florence2.model.locations import decode
from florence2.model.tasks import InputType, OutputType, find_task
from florence2.results.render import draw_answer

_REDUCED_SIZE = (4096, 4096)  # a JPEG is drawn at a reduced scale if its sides stay as long
_MAX_NAME_PART = 40  # letters of a task or an input in a file name


class AnnotatedImageWriter:
    """Writes images with their predicted answers into a folder, at the relative paths of the images."""

    def __init__(self, folder: str, samples: Sequence[Sample], *, is_multi_task: bool = False) -> None:
        """Register the samples; if one image has several, file names contain task and input."""
        self.folder = Path(folder)
        self._samples: ListedSamples | dict[str, Sample]
        ids: ListedImages | dict[str, Sample]
        if isinstance(samples, ListedSamples):
            self._samples, ids = samples, samples.images
        else:
            self._samples = ids = {sample.id: sample for sample in reversed(samples)}
        self._has_task_in_name = is_multi_task or len(ids) < len(samples)
        self._full_names = _full_names(ids)

    def write(self, prediction: Prediction) -> Path | None:
        """Draw one answer and return the file; a prediction with an error has none."""
        if prediction.error is not None:
            return None
        opened = self._sample(prediction.file_name).open(min_size=_REDUCED_SIZE)
        path = path_inside(self.folder, self._name(prediction).as_posix())
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = answer_with_input(prediction, opened.size)
        draw_answer(opened.image, answer, size=opened.size).save(path, quality=90)
        return path

    def _sample(self, image_id: str) -> Sample:
        samples = self._samples
        return samples.sample_of(image_id) if isinstance(samples, ListedSamples) else samples[image_id]

    def _name(self, prediction: Prediction) -> Path:
        name = Path(prediction.file_name)
        stem = self._full_names.get(prediction.file_name, name.stem)
        parts = [find_task(prediction.task).name, prediction.input] if self._has_task_in_name else []
        return name.with_name(".".join([_portable(stem), *filter(None, map(_name_part, parts)), "jpg"]))


def answer_with_input(prediction: Prediction, size: tuple[int, int]) -> Answer | str:
    """Return what to draw on an image of `size`: the answer with the input region, or the phrase as label of masks."""
    task, answer = find_task(prediction.task), prediction.answer
    if answer and task.input_type is InputType.WORDS and task.output_type is OutputType.POLYGONS:
        return replace(answer, items=tuple(replace(item, label=prediction.input) for item in answer))
    if task.input_type is not InputType.REGION:
        return prediction.text if answer is None else answer
    region = decode(OutputType.REGIONS, prediction.input, size).first(1)
    if task.output_type is OutputType.TEXT:
        items = tuple(replace(item, label=prediction.text, score=prediction.score) for item in region)
        return Answer(OutputType.BOXES, items)
    items = tuple(replace(item, label="region") for item in region)
    return Answer(OutputType.BOXES_OR_POLYGONS, (*items, *(answer or ())))


def _full_names(names: Iterable[str]) -> dict[str, str]:
    """Return other names for images whose drawings would be one file, as those of `a.png` and `A.jpg` on Windows.

    They keep their extension; names that differ by case alone get a digest, too.
    """
    stems = DigestSet()
    repeated = {stem for stem in map(_folded_stem, names) if not stems.add(digest_key(stem))}
    if not repeated:
        return {}
    folded = Counter(name.casefold() for name in names if _folded_stem(name) in repeated)
    full = {}
    for name in names:
        if _folded_stem(name) in repeated:
            digest = f"-{sha256(os.fsencode(name)).hexdigest()[:8]}" if folded[name.casefold()] > 1 else ""
            full[name] = PurePosixPath(name).name + digest
    return full


def _folded_stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")).casefold()


def _portable(name: str) -> str:
    """Replace the characters that a file name on Windows cannot contain, there alone."""
    return re.sub(r'[<>:"|?*]', "-", name) if sys.platform == "win32" else name


def _name_part(text: str) -> str:
    """Convert a task or an input to a part of a file name, such as `1-2` for `<loc_1><loc_2>`."""
    return re.sub(r"[^\w]+", "-", re.sub(r"<loc_(\d+)>", r"-\1", text)).strip("-")[:_MAX_NAME_PART]
