"""The prediction of one image together with the image: for reading, drawing and conversion in Python."""

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from florence2.data.sample import Prediction, Sample
from florence2.errors import DatasetError
from florence2.model.answer import Answer
from florence2.results.annotated_images import answer_with_input
from florence2.results.render import draw_answer


@dataclass(frozen=True)
class Result:
    """A prediction and the sample that it answers; coordinates are pixels of the upright image."""

    sample: Sample
    prediction: Prediction

    @property
    def text(self) -> str:
        """Return the generated text; that of a task with coordinates contains location tokens."""
        return self.prediction.text

    @property
    def answer(self) -> Answer | None:
        """Return the positions of the answer; None for a task whose output is text."""
        return self.prediction.answer

    @property
    def boxes(self) -> list[list[float]]:
        """Return the bounding box [x1, y1, x2, y2] of each box, quad or mask, in pixels."""
        return [list(item.bounding_box) for item in self.answer or ()]

    @property
    def labels(self) -> list[str]:
        """Return the label of each object, in the order of `boxes`; "" where it has none."""
        return [] if self.answer is None else self.answer.labels

    @property
    def scores(self) -> list[float | None]:
        """Return the score of each object, in the order of `boxes`; None where it has none."""
        return [] if self.answer is None else self.answer.scores

    @property
    def score(self) -> float | None:
        """Return the score of the whole text."""
        return self.prediction.score

    @property
    def error(self) -> str | None:
        """Return the reason why the image has no prediction; None where it has one."""
        return self.prediction.error

    @cached_property
    def image(self) -> Image.Image:
        """Return the upright RGB image. Raises DatasetError where it cannot be read."""
        return self.sample.open().image

    def plot(self) -> Image.Image:
        """Return a copy of the image with the answer drawn on it, or with the text below it.

        Raises DatasetError where the image has no prediction.
        """
        if self.error is not None:
            raise DatasetError(f"there is nothing to draw on {self.sample.id}: {self.error}", "check `error` first")
        return draw_answer(self.image, answer_with_input(self.prediction, self.image.size))

    def save(self, path: str | Path) -> Path:
        """Write the annotated image to a file, whose extension decides the format, and return its path."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.plot().save(path)
        return Path(path)

    def to_json(self) -> dict[str, Any]:
        """Return the row of `captions.jsonl`."""
        return self.prediction.to_json()

    def to_supervision(self) -> Any:
        """Return roboflow's `supervision.Detections`; see `Answer.to_supervision`."""
        return self._require_answer().to_supervision()

    def to_coco(self, image_id: int, category_ids: dict[str, int], first_id: int = 1) -> list[dict[str, Any]]:
        """Return COCO annotations; see `Answer.to_coco`."""
        return self._require_answer().to_coco(image_id, category_ids, first_id)

    def _require_answer(self) -> Answer:
        if self.answer is None:
            reason = self.error or f"the task `{self.prediction.task}` answers with text"
            raise DatasetError(f"{self.sample.id} has no boxes: {reason}", "read `text`, or choose a task with boxes")
        return self.answer

    def _repr_png_(self) -> bytes:
        """Return the annotated image, which a notebook shows."""
        buffer = io.BytesIO()
        self.plot().save(buffer, "PNG")
        return buffer.getvalue()
