"""Answers drawn on their pictures, one file for each: `--save_images DIR`.

Knows no model; how an answer is drawn is `render.py`.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from florence2.data.sample import Prediction, Sample
from florence2.model.locations import decode
from florence2.model.tasks import InputType, OutputType, Task, find_task
from florence2.results.render import draw_answer

_MOST_LETTERS = 40  # of a task or an input, in a file's name


class AnnotatedImageWriter:
    """A folder of pictures with their answers, laid out as the pictures themselves are."""

    def __init__(self, folder: str, samples: Iterable[Sample], *, several: bool = False) -> None:
        """Take all samples; where `several` questions are asked of a picture, file names tell them apart."""
        self.folder = Path(folder)
        self._samples: dict[str, Sample] = {}
        self._several = several
        for sample in samples:
            self._several |= self._samples.setdefault(sample.id, sample) is not sample

    def write(self, prediction: Prediction) -> Path | None:
        """Draw one answer and give the file; a prediction with an error has none."""
        if prediction.error is not None:
            return None
        opened = self._samples[prediction.file_name].open()
        path = self.folder / self._name(prediction)
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_answer(opened.image, _drawn(find_task(prediction.task), prediction, opened.size)).save(path, quality=90)
        return path

    def _name(self, prediction: Prediction) -> Path:
        name = Path(prediction.file_name)
        asked = [find_task(prediction.task).name, prediction.input] if self._several else []
        return name.with_name(".".join([name.stem, *filter(None, map(_short, asked)), "jpg"]))


def _short(words: str) -> str:
    """Leave of a task or an input what a file's name can hold: `<loc_1><loc_2>` is `1-2`."""
    return re.sub(r"[^\w]+", "-", re.sub(r"<loc_(\d+)>", r"-\1", words)).strip("-")[:_MOST_LETTERS]


def _drawn(task: Task, prediction: Prediction, size: tuple[int, int]) -> Any:
    """Choose what is drawn: the answer, with what was asked about, a region or words that masks lack."""
    if task.input_type is InputType.WORDS and task.output_type is OutputType.POLYGONS:
        return {**prediction.answer, "labels": [prediction.input] * len(prediction.answer["polygons"])}
    if task.input_type is not InputType.REGION:
        return prediction.text if prediction.answer is None else prediction.answer
    regions = decode(OutputType.REGIONS, prediction.input, size)["bboxes"][:1]
    if task.output_type is OutputType.TEXT:
        label = [prediction.text] * len(regions)
        return {"bboxes": regions, "labels": label, "scores": [prediction.score] * len(regions)}
    return {**prediction.answer, "bboxes": regions, "bboxes_labels": ["region"] * len(regions), "bboxes_scores": []}
