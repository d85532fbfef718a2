"""Generated tokens become predictions, with the scores of the text and of each object."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from florence2.data.sample import Prediction
from florence2.engine.generation_config import ModelGenerationConfig
from florence2.engine.requests import Request
from florence2.model import locations
from florence2.model.location_grammar import LocatedObject, Span
from florence2.model.processing import Preprocessor
from florence2.model.tasks import OutputType

NOT_FINITE = "the model's output is not finite (NaN); try `--dtype float32`, or another checkpoint"


@dataclass(frozen=True, eq=False)
class CompletionOutput:
    """One generated sequence: the tokens behind the start token, and their log-probabilities; eos ends it."""

    ids: list[int]
    logprobs: list[float]


def to_prediction(
    preprocessor: Preprocessor,
    model_config: ModelGenerationConfig,
    request: Request,
    completions: Sequence[CompletionOutput],
) -> Prediction:
    """Decode the sequences of a request; the first has the others as its alternatives.

    Logits that are not finite make the probabilities of a sequence NaN: the prediction is an error.
    """
    first, *others = [_read_completion(preprocessor, model_config, request, each) for each in completions]
    if any(each.score is not None and math.isnan(each.score) for each in (first, *others)):
        return Prediction(first.file_name, first.task, first.input, error=NOT_FINITE)
    return replace(first, alternatives=tuple(others))


def _read_completion(
    preprocessor: Preprocessor, model_config: ModelGenerationConfig, request: Request, completion: CompletionOutput
) -> Prediction:
    """Decode one sequence.

    `score` is exp of the mean log-probability of the tokens that the model chose, with eos; forced tokens (bos, and
    eos at the maximal length) do not count. Objects have scores of their own, see `ObjectScorer`.
    """
    caption_slice = model_config.caption_slice(completion.ids)
    caption = list(completion.ids[caption_slice])
    text = preprocessor.decode(caption)
    answer = None
    if request.task.output_type is not OutputType.TEXT:
        scorer = ObjectScorer(preprocessor.char_spans(caption), completion.logprobs[caption_slice])
        answer = locations.decode(request.task, text, request.image_inputs.size, score=scorer.score)
    return Prediction(
        file_name=request.sample.id,
        task=request.sample.task,
        input=request.sample.input,
        text=text,
        answer=answer,
        num_tokens=len(caption),
        score=_geometric_mean(completion.logprobs[model_config.sampled_slice(completion.ids, request.limits)]),
    )


class ObjectScorer:
    """Scores the objects of a text by the probabilities of their labels and locations."""

    def __init__(self, spans: Sequence[Span], logprobs: Sequence[float]) -> None:
        """Take the character span of each token, and its log-probability."""
        tokens = [(*span, logprob) for span, logprob in zip(spans, logprobs, strict=True) if span[0] < span[1]]
        self._starts, self._ends = [start for start, _, _ in tokens], [end for _, end, _ in tokens]
        self._logprobs = [logprob for _, _, logprob in tokens]

    def score(self, located: LocatedObject) -> float | None:
        """Return the geometric mean of two: the mean probability of the label, and that of the location.

        So label and location count alike, however many tokens either has; a label counts for each of its objects.
        """
        means = [_geometric_mean(self._logprobs_within(*span)) for span in (located.label_span, located.span)]
        return _geometric_mean([math.log(mean) for mean in means if mean])

    def _logprobs_within(self, start: int, end: int) -> list[float]:
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return self._logprobs[first:last] if start < end else []


def _geometric_mean(logprobs: Sequence[float]) -> float | None:
    """Return the geometric mean of probabilities."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else None
