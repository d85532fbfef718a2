"""Generated tokens become predictions, with the scores of the text and of each object."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from florence2.data.sample import Prediction
from florence2.engine.decoding.location_mass import RADII
from florence2.engine.generation_config import ModelGenerationConfig
from florence2.engine.requests import Request
from florence2.model import locations
from florence2.model.location_grammar import LocatedObject
from florence2.model.processing import Preprocessor
from florence2.model.storage.score_calibration import ScoreCalibration
from florence2.model.tasks import OutputType

TOLERANCE = 1 / 8  # of the side of an object
SMALLEST_MASS = 1e-9
NOT_FINITE = "the model's output is not finite (NaN); try `--dtype float32`, or another checkpoint"


@dataclass(frozen=True, eq=False)
class CompletionOutput:
    """One generated sequence: the tokens behind the start token, and their log-probabilities; eos ends it.

    `masses` has the probability near each location token, at each of `RADII`.
    """

    ids: list[int]
    logprobs: list[float]
    masses: list[list[float]]


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
        tokens = _caption_tokens(preprocessor, completion, caption_slice)
        scorer = ObjectScorer(tokens, request.task.name, model_config.score_calibration)
        answer = locations.decode(request.task, text, request.image_inputs.size, score=scorer.score)
    prediction = Prediction(
        file_name=request.sample.id,
        task=request.sample.task,
        input=request.sample.input,
        text=text,
        answer=answer,
        num_tokens=len(caption),
        score=_geometric_mean(completion.logprobs[model_config.sampled_slice(completion.ids, request.limits)]),
    )
    return _remove_low_scores(prediction, request)


def _remove_low_scores(prediction: Prediction, request: Request) -> Prediction:
    """Remove the objects whose score is below the request's `min_score`, and count them."""
    answer = prediction.answer
    remaining = answer.filter(score=request.generation.min_score) if answer and request.generation.min_score else answer
    if answer is None or remaining is None or len(remaining) == len(answer):
        return prediction
    text = locations.encode(request.task, remaining, request.image_inputs.size)
    return replace(prediction, text=text, answer=remaining, num_removed=len(answer) - len(remaining))


@dataclass(frozen=True, slots=True)
class CaptionToken:
    """A generated token: its character span, its log-probability, and of a location token the mass at each radius."""

    start: int
    end: int
    logprob: float
    masses: tuple[float, ...] = ()

    def log_mass(self, tolerance: float) -> float:
        """Return the log of the probability within `tolerance` bins, between the radii by linear interpolation."""
        if not self.masses:
            return self.logprob
        inner_radius, inner = 0, math.exp(self.logprob)
        for radius, mass in zip(RADII, self.masses, strict=True):
            if tolerance < radius:
                inner += (mass - inner) * (tolerance - inner_radius) / (radius - inner_radius)
                break
            inner_radius, inner = radius, mass
        return math.log(max(inner, SMALLEST_MASS)) if inner == inner else math.nan


def _caption_tokens(
    preprocessor: Preprocessor, completion: CompletionOutput, caption_slice: slice
) -> list[CaptionToken]:
    """Return the tokens of a caption that have characters."""
    ids = completion.ids[caption_slice]
    rows = zip(
        ids,
        preprocessor.char_spans(ids),
        completion.logprobs[caption_slice],
        completion.masses[caption_slice],
        strict=True,
    )
    return [
        CaptionToken(*span, logprob, tuple(masses) if token in preprocessor.location_ids else ())
        for token, span, logprob, masses in rows
        if span[0] < span[1]
    ]


class ObjectScorer:
    """Scores the objects of a text by the probabilities of their labels and locations.

    A location token counts with the mass within an eighth of the object's side, at most 10 bins: as long as no side of
    a box moves by more, its IoU is at least 0.56.
    """

    def __init__(self, tokens: Sequence[CaptionToken], task: str, calibration: ScoreCalibration | None = None) -> None:
        """Take the tokens of the text, and the calibration of the model, if it has one."""
        self._starts, self._ends = [token.start for token in tokens], [token.end for token in tokens]
        self._tokens, self._task, self._calibration = tokens, task, calibration

    def score(self, located: LocatedObject) -> float | None:
        """Return the geometric mean of two, calibrated: the label's mean probability, and the location's mean mass.

        So label and location count alike, however many tokens either has; a label counts for each of its objects.
        """
        label = [token.logprob for token in self._within(*located.label_span)]
        means = [mean for logs in (label, self._log_masses(located)) if (mean := _geometric_mean(logs))]
        score = _geometric_mean([math.log(mean) for mean in means])
        return score if score is None or self._calibration is None else self._calibration.apply(self._task, score)

    def _log_masses(self, located: LocatedObject) -> list[float]:
        sides = located.sides
        axis, logs = 0, []
        for token in self._within(*located.span):
            logs.append(token.log_mass(sides[axis] * TOLERANCE))
            axis = 1 - axis if token.masses else 0  # each polygon begins with x
        return logs

    def _within(self, start: int, end: int) -> Sequence[CaptionToken]:
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return self._tokens[first:last] if start < end else []


def _geometric_mean(logprobs: Sequence[float]) -> float | None:
    """Return the geometric mean of probabilities."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else None
