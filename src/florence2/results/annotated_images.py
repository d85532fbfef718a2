"""Annotated images, one file per prediction: `--save_images DIR`."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from florence2.data.sample import Prediction, Sample
from florence2.model.answer import Answer
from florence2.model.locations import decode
from florence2.model.tasks import InputType, OutputType, find_task
from florence2.results.render import draw_answer

_MAX_NAME_PART = 40  # letters of a task or an input in a file name


class AnnotatedImageWriter:
    """Writes images with their predicted answers into a folder, at the relative paths of the images."""

    def __init__(self, folder: str, samples: Iterable[Sample], *, is_multi_task: bool = False) -> None:
        """Register the samples; if one image has several, file names contain task and input."""
        self.folder = Path(folder)
        self._samples: dict[str, Sample] = {}
        self._has_task_in_name = is_multi_task
        for sample in samples:
            self._has_task_in_name |= self._samples.setdefault(sample.id, sample) is not sample

    def write(self, prediction: Prediction) -> Path | None:
        """Draw one answer and return the file; a prediction with an error has none."""
        if prediction.error is not None:
            return None
        opened = self._samples[prediction.file_name].open()
        path = self.folder / self._name(prediction)
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = answer_with_input(prediction, opened.size)
        draw_answer(opened.image, answer).save(path, quality=90)
        return path

    def _name(self, prediction: Prediction) -> Path:
        name = Path(prediction.file_name)
        parts = [find_task(prediction.task).name, prediction.input] if self._has_task_in_name else []
        return name.with_name(".".join([name.stem, *filter(None, map(_name_part, parts)), "jpg"]))


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


def _name_part(text: str) -> str:
    """Convert a task or an input to a part of a file name, such as `1-2` for `<loc_1><loc_2>`."""
    return re.sub(r"[^\w]+", "-", re.sub(r"<loc_(\d+)>", r"-\1", text)).strip("-")[:_MAX_NAME_PART]
