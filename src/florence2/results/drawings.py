"""Answers drawn on their pictures, one file for each: `--draw DIR`.

Knows no model; how an answer is drawn is `render.py`.
"""

from pathlib import Path

from florence2.data.sample import Prediction, Sample
from florence2.model.tasks import find_task
from florence2.results.render import draw


class Drawings:
    """A folder of pictures with their answers, laid out as the pictures themselves are."""

    def __init__(self, folder: str, samples: list[Sample]) -> None:
        self.folder = Path(folder)
        self._samples = {sample.key: sample for sample in samples}
        asked = [sample.id for sample in samples]
        self._several = len(set(asked)) < len(asked)  # then the task tells a picture's drawings apart

    def write(self, prediction: Prediction) -> None:
        """Draw one answer; a prediction with an error has none."""
        if prediction.error is not None:
            return
        opened = self._samples[prediction.key].open()
        name = Path(prediction.file_name)
        task = f".{find_task(prediction.task).name[:40].replace('/', '_')}" if self._several else ""
        path = self.folder / name.with_name(f"{name.stem}{task}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(opened.image, prediction.text if prediction.answer is None else prediction.answer).save(path, quality=90)
