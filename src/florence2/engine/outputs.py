"""The tokens that the model said become predictions, with how sure it was of each part.

Knows nothing of how the tokens were found.
"""

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


@dataclass(frozen=True, eq=False)
class CompletionOutput:
    """One sequence as generated: tokens after the start token, and their log-probabilities; eos ends what counts."""

    ids: list[int]
    logprobs: list[float]


def to_prediction(
    preprocessor: Preprocessor, rules: ModelGenerationConfig, question: Request, said: Sequence[CompletionOutput]
) -> Prediction:
    """Read what the model said; where it said several things, the first has the others as its alternatives."""
    first, *others = [_read_completion(preprocessor, rules, question, each) for each in said]
    return replace(first, alternatives=tuple(others))


def _read_completion(
    preprocessor: Preprocessor, rules: ModelGenerationConfig, question: Request, said: CompletionOutput
) -> Prediction:
    """Read one sequence.

    `score` is exp of the mean log-probability of the tokens the model chose, eos included; tokens that were forced on
    it (bos, and eos at the longest length) do not count. Objects have scores of their own: `Sureness`.
    """
    words = rules.caption_slice(said.ids)
    caption = list(said.ids[words])
    text = preprocessor.decode(caption)
    is_words = question.task.output_type is OutputType.TEXT
    score = None if is_words else ObjectScorer(preprocessor.char_spans(caption), said.logprobs[words]).score
    return Prediction(
        file_name=question.sample.id,
        task=question.sample.task,
        input=question.sample.input,
        text=text,
        answer=locations.decode(question.task, text, question.image_inputs.size, score=score),
        num_tokens=len(caption),
        score=_geometric_mean(said.logprobs[rules.sampled_slice(said.ids, question.limits)]),
    )


class ObjectScorer:
    """How sure the model was of each object in a text: of its label and of its places, together."""

    def __init__(self, spans: Sequence[Span], logprobs: Sequence[float]) -> None:
        """Take where each token stands in the text, and its log-probability."""
        seen = [(*span, logprob) for span, logprob in zip(spans, logprobs, strict=True) if span[0] < span[1]]
        self._starts, self._ends = [start for start, _, _ in seen], [end for _, end, _ in seen]
        self._logprobs = [logprob for _, _, logprob in seen]

    def score(self, placed: LocatedObject) -> float | None:
        """Give the geometric mean of two: that of the label's probabilities, and that of the places'.

        So a label counts as much as its places, however many tokens either has; it counts for each of its objects.
        """
        parts = [_geometric_mean(self._within(*span)) for span in (placed.label_span, placed.span)]
        return _geometric_mean([math.log(part) for part in parts if part])

    def _within(self, start: int, end: int) -> list[float]:
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return self._logprobs[first:last] if start < end else []


def _geometric_mean(logprobs: Sequence[float]) -> float | None:
    """Give the geometric mean of probabilities."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else None
