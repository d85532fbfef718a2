"""Several classes for open-vocabulary detection, `cat, dog`: asked one by one, told in one line.

The model was taught to be asked of one thing at a time; several joined by `<and>` are one question, and stay one.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from florence2.data.sample import Prediction, Sample, SampleKey
from florence2.model.answer import Answer
from florence2.model.location_grammar import decode_objects, encode_objects
from florence2.model.tasks import OutputType
from florence2.pipeline.task_pipeline import TaskPipeline, TaskStep


def classes_of(step: TaskStep) -> list[str]:
    """Part the input of open-vocabulary detection at its commas; fewer than two classes are none."""
    if step.task.output_type is not OutputType.BOXES_OR_POLYGONS:
        return []
    classes = list(dict.fromkeys(part.strip() for part in step.input.split(",") if part.strip()))
    return classes if len(classes) > 1 else []


@dataclass(frozen=True, eq=False)
class MultiClassQuery:
    """A question about several classes, and the answers about each that have come."""

    sample: Sample
    parts: dict[SampleKey, Prediction | None]


class ClassSplitter:
    """Asks about several classes one by one, and puts the answers together."""

    def __init__(self, plan: TaskPipeline) -> None:
        self._classes = {(step.task.token, step.input): classes_of(step) for step in plan.steps}
        self._wholes: dict[SampleKey, list[MultiClassQuery]] = {}
        self._asked: set[SampleKey] = set()

    def split(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Give the questions to ask in place of the samples."""
        for sample in samples:
            if classes := self._classes.get((sample.task, sample.input)):
                parts = [replace(sample, input=name) for name in classes]
                whole = MultiClassQuery(sample, dict.fromkeys(part.key for part in parts))
                new = [part for part in parts if part.key not in self._wholes]
                for part in parts:
                    self._wholes.setdefault(part.key, []).append(whole)
                yield from new
            else:
                self._asked.add(sample.key)
                yield sample

    def merge(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Pass answers on; those about parts are held until the whole is there."""
        for prediction in predictions:
            wholes = self._wholes.pop(prediction.key, [])
            if not wholes or prediction.key in self._asked:
                yield prediction
            for whole in wholes:
                whole.parts[prediction.key] = prediction
                told = [part for part in whole.parts.values() if part is not None]
                if len(told) == len(whole.parts):
                    yield merge_predictions(whole.sample, told)


def merge_predictions(sample: Sample, parts: Sequence[Prediction]) -> Prediction:
    """Put the answers about the classes of one question together; one that failed fails the whole.

    The text is that of the objects alone, `score` the geometric mean of the parts' scores.
    """
    failed = next((part for part in parts if part.error is not None), None)
    if failed:
        return replace(failed, input=sample.input)
    kind = OutputType.BOXES_OR_POLYGONS
    scores = [part.score for part in parts if part.score]
    return Prediction(
        sample.id,
        sample.task,
        sample.input,
        text=encode_objects(kind, chain.from_iterable(decode_objects(kind, part.text) for part in parts)),
        answer=Answer.merged([part.answer for part in parts if part.answer is not None]),
        num_tokens=sum(part.num_tokens for part in parts),
        score=math.exp(sum(map(math.log, scores)) / len(scores)) if scores else None,
        alternatives=tuple(
            merge_predictions(sample, each) for each in zip(*(p.alternatives for p in parts), strict=True)
        ),
    )
