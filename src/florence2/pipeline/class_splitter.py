"""Open-vocabulary detection of several classes, `cat, dog`: one sample for each class, merged into one prediction.

The model was trained on one class in a prompt. Classes joined by `<and>` remain one prompt.
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


def parse_classes(step: TaskStep) -> list[str]:
    """Split the input of open-vocabulary detection at its commas; return an empty list for fewer than two classes."""
    if step.task.output_type is not OutputType.BOXES_OR_POLYGONS:
        return []
    classes = list(dict.fromkeys(part.strip() for part in step.input.split(",") if part.strip()))
    return classes if len(classes) > 1 else []


@dataclass(frozen=True, eq=False)
class MultiClassQuery:
    """A sample with several classes, and the prediction of each class once it is available."""

    sample: Sample
    parts: dict[SampleKey, Prediction | None]


class ClassSplitter:
    """Splits samples with several classes into one sample for each class, and merges their predictions."""

    def __init__(self, pipeline: TaskPipeline) -> None:
        self._classes = {(step.task.token, step.input): parse_classes(step) for step in pipeline.steps}
        self._queries: dict[SampleKey, list[MultiClassQuery]] = {}
        self._unsplit_keys: set[SampleKey] = set()

    @property
    def has_queries(self) -> bool:
        """Return whether a step of the pipeline has several classes; other samples are not split."""
        return any(self._classes.values())

    def split(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples to predict; a class that several samples share is yielded once."""
        for sample in samples:
            if classes := self._classes.get((sample.task, sample.input)):
                parts = [replace(sample, input=name) for name in classes]
                query = MultiClassQuery(sample, dict.fromkeys(part.key for part in parts))
                new = [part for part in parts if part.key not in self._queries]
                for part in parts:
                    self._queries.setdefault(part.key, []).append(query)
                yield from new
            else:
                if self.has_queries:
                    self._unsplit_keys.add(sample.key)
                yield sample

    def merge(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yield the predictions; those of single classes are collected until their query is complete."""
        for prediction in predictions:
            queries = self._queries.pop(prediction.key, [])
            if not queries or prediction.key in self._unsplit_keys:
                yield prediction
            for query in queries:
                query.parts[prediction.key] = prediction
                available = [part for part in query.parts.values() if part is not None]
                if len(available) == len(query.parts):
                    yield merge_predictions(query.sample, available)


def merge_predictions(sample: Sample, parts: Sequence[Prediction]) -> Prediction:
    """Merge the predictions of a sample's classes into one; a failed part makes the merged prediction fail.

    The text contains the objects only. `score` is the geometric mean of the parts' scores.
    """
    failed = next((part for part in parts if part.error is not None), None)
    if failed:
        return replace(failed, input=sample.input)
    output_type = OutputType.BOXES_OR_POLYGONS
    scores = [part.score for part in parts if part.score]
    objects = chain.from_iterable(decode_objects(output_type, part.text) for part in parts)
    return Prediction(
        sample.id,
        sample.task,
        sample.input,
        text=encode_objects(output_type, objects),
        answer=Answer.merged([part.answer for part in parts if part.answer is not None]),
        num_tokens=sum(part.num_tokens for part in parts),
        score=math.exp(sum(map(math.log, scores)) / len(scores)) if scores else None,
        num_removed=sum(part.num_removed for part in parts),
        alternatives=tuple(
            merge_predictions(sample, each) for each in zip(*(p.alternatives for p in parts), strict=True)
        ),
    )
