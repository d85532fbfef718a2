"""The choice of the next token, for all slots at once and on the device: greedy search, sampling and beam search.

The arithmetic is that of transformers' `generate`, operation by operation, so that equal logits give equal tokens. Ties
to the last bit follow the same rule: greedy search takes the lowest token id (`torch.argmax`); beam search takes
whatever `torch.topk` takes from the sums of one slot, laid out beam by beam and token by token, as in transformers.

Shapes: S slots, W rows of a slot, K candidates of a step, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from florence2.engine.decoding.batch_state import INVALID_SCORE, BatchState, SearchStep
from florence2.engine.decoding.location_mass import LocationMass
from florence2.engine.decoding.logits_processors import (
    NEG_INF,
    LogitsProcessors,
    blocked_topk,
    forced_tokens,
    gumbel_sample,
    warp,
)
from florence2.engine.generation_config import GenerationConfig, ModelGenerationConfig

MAX_SEARCHES = 64  # searches that are remembered while no request uses them


class Search(Protocol):
    """A way to choose tokens; `width` is the number of rows it uses in a slot."""

    width: int

    def choose(self, batch: BatchState, logits_SWV: Tensor) -> SearchStep:
        """Choose the next token of every row; the logits are overwritten."""


class SearchRegistry:
    """The searches of an engine by number; requests whose configs need the same search share one.

    A number is never used for another search, so that a CUDA graph may be known by it.
    """

    def __init__(self, model_config: ModelGenerationConfig, mass: LocationMass) -> None:
        self._model_config, self._mass = model_config, mass
        self._numbers: dict[GenerationConfig, int] = {}
        self._searches: dict[int, Search] = {}
        self._next_number = 0

    def __len__(self) -> int:
        return len(self._searches)

    def __getitem__(self, number: int) -> Search:
        return self._searches[number]

    def number_of(self, generation: GenerationConfig) -> int:
        """Return the number of the search that a config needs; a new search gets the next number."""
        config = generation.search_config()
        if config not in self._numbers:
            self._numbers[config] = self._next_number
            self._searches[self._next_number] = create_search(config, self._model_config, self._mass)
            self._next_number += 1
        return self._numbers[config]

    def drop_all_but(self, numbers: Sequence[int]) -> None:
        """Forget all searches but these."""
        self._numbers = {config: number for config, number in self._numbers.items() if number in numbers}
        self._searches = {number: self._searches[number] for number in self._numbers.values()}

    def append_tokens(self, batch: BatchState, logits_SWV: Tensor, numbers: Sequence[int]) -> None:
        """Choose the next token of every slot by its own search, and append it.

        A search with fewer rows than the batch uses the first rows of its slots.
        """
        slots, width, tokens = batch.tokens_SWT.shape
        for number in numbers:
            search = self._searches[number]
            rows = batch if search.width == width else batch.view(slots, tokens, search.width)
            rows_SWV = logits_SWV[:, : search.width]
            if len(numbers) == 1:
                rows.append(search.choose(rows, rows_SWV))
            else:  # each search computes all slots, for shapes that do not depend on which slots are its own
                rows.append(search.choose(rows, rows_SWV.clone()), rows.search_S == number)


def create_search(generation: GenerationConfig, model_config: ModelGenerationConfig, mass: LocationMass) -> Search:
    """Create the search that a config describes."""
    kind = BeamSearch if generation.num_beams > 1 else GreedyOrSampling
    return kind(generation, model_config, mass)


class GreedyOrSampling:
    """Greedy search or sampling: the rows of a slot are independent."""

    def __init__(self, generation: GenerationConfig, model_config: ModelGenerationConfig, mass: LocationMass) -> None:
        self.width = generation.width
        self._generation, self._model_config, self._mass = generation, model_config, mass
        self._process = LogitsProcessors(generation, model_config)

    def choose(self, batch: BatchState, logits_SWV: Tensor) -> SearchStep:
        """Take the most likely token of each row, or sample one."""
        config = self._model_config
        total_SW = logits_SWV.logsumexp(-1)
        locations_SWN = self._mass.location_logits(logits_SWV) - total_SW.unsqueeze(-1)
        raw_SWV = logits_SWV.clone() if self._generation.repetition_penalty != 1.0 else logits_SWV
        scores_SWV = self._process(batch, logits_SWV)
        if self._generation.do_sample:
            scores_SWV = gumbel_sample(batch, warp(scores_SWV, self._generation, min_tokens=1))
        token_SW = scores_SWV.argmax(-1)
        for is_forced_S, token in forced_tokens(batch, config):
            token_SW = token_SW.masked_fill(is_forced_S[:, None], token)
        logprob_SW = raw_SWV.gather(-1, token_SW.unsqueeze(-1)).squeeze(-1) - total_SW
        token_SW = token_SW.masked_fill(batch.is_finished_SW, config.pad_token_id)
        is_last_S1 = (batch.length_S + 1 >= batch.max_length_S)[:, None]
        finished_SW = batch.is_finished_SW | (token_SW == config.eos_token_id) | is_last_S1
        rows_SW = torch.arange(self.width, device=token_SW.device).expand_as(token_SW)
        return SearchStep(
            parent_SK=rows_SW,
            token_SK=token_SW,
            likelihood_SK=self._mass.pack(locations_SWN, rows_SW, token_SW, logprob_SW),
            beam_index_SW=rows_SW,
            score_SW=batch.scores_SW,
            is_finished_SW=finished_SW,
            is_done_S=finished_SW.all(-1),
        )


class BeamSearch:
    """Beam search as in transformers: twice as many candidates as beams, and finished beams apart."""

    def __init__(self, generation: GenerationConfig, model_config: ModelGenerationConfig, mass: LocationMass) -> None:
        self.width = generation.width
        self._generation, self._model_config, self._mass = generation, model_config, mass
        self._process = LogitsProcessors(generation, model_config)

    def choose(self, batch: BatchState, logits_SWV: Tensor) -> SearchStep:
        """Choose the candidates, the running beams and the finished beams."""
        score_SK, parent_SK, token_SK, likelihood_SK = self._candidates(batch, logits_SWV)
        is_last_S1 = (batch.length_S + 1 >= batch.max_length_S)[:, None]
        ends_SK = (token_SK == self._model_config.eos_token_id) | is_last_S1
        running_SK = score_SK + ends_SK.float() * INVALID_SCORE
        beam_index_SW = running_SK.topk(self.width).indices
        running_SW = running_SK.gather(1, beam_index_SW)
        finished_score_SW, finished_index_SW, finished_SW = self._merge_finished(batch, score_SK, ends_SK)
        can_improve_S = self._can_improve(batch, running_SW, finished_score_SW, finished_SW)
        is_full_S = finished_SW.all(-1) & (self._generation.early_stopping is True)
        return SearchStep(
            parent_SK=parent_SK,
            token_SK=token_SK,
            likelihood_SK=likelihood_SK,
            beam_index_SW=beam_index_SW,
            score_SW=running_SW,
            is_finished_SW=finished_SW,
            is_done_S=~can_improve_S | is_full_S | ends_SK.all(-1),
            finished_index_SW=finished_index_SW,
            finished_score_SW=finished_score_SW,
        )

    def _candidates(self, batch: BatchState, logits_SWV: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute score, parent, token and likelihood of the 2W best continuations."""
        vocabulary = logits_SWV.shape[-1]
        raw_SWV = logits_SWV.log_softmax(-1)
        locations_SWN = self._mass.location_logits(raw_SWV).clone()
        scores_SWV = self._process(batch, raw_SWV.clone() if self._generation.repetition_penalty != 1.0 else raw_SWV)
        if self._generation.do_sample:
            scores_SWV = warp(scores_SWV, self._generation, min_tokens=2)
        index_SK, score_SK = self._best(batch, scores_SWV)
        logprob_SK = raw_SWV.flatten(1).gather(1, index_SK)
        parent_SK, token_SK = index_SK // vocabulary, index_SK % vocabulary
        likelihood_SK = self._mass.pack(locations_SWN, parent_SK, token_SK, logprob_SK)
        own_SK = torch.arange(2 * self.width, device=index_SK.device).expand_as(index_SK) % self.width
        forced_SK = torch.cat((batch.scores_SW, torch.full_like(batch.scores_SW, NEG_INF)), 1)
        for is_forced_S, token in forced_tokens(batch, self._model_config):  # each beam continues, at no cost
            is_forced_S1 = is_forced_S[:, None]
            score_SK = torch.where(is_forced_S1, forced_SK, score_SK)
            parent_SK = torch.where(is_forced_S1, own_SK, parent_SK)
            token_SK = token_SK.masked_fill(is_forced_S1, token)
        return score_SK, parent_SK, token_SK, likelihood_SK

    def _best(self, batch: BatchState, scores_SWV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the 2W best or sampled candidates: their indices among W x V, and their sums."""
        if scores_SWV.is_cuda and not self._generation.do_sample:
            score_SK, index_SK = blocked_topk(scores_SWV, batch.scores_SW, 2 * self.width)
            return index_SK, score_SK
        sums_SWV = scores_SWV + batch.scores_SW.unsqueeze(-1)
        order_SWV = gumbel_sample(batch, sums_SWV) if self._generation.do_sample else sums_SWV
        index_SK = order_SWV.flatten(1).topk(2 * self.width).indices
        return index_SK, sums_SWV.flatten(1).gather(1, index_SK)

    def _merge_finished(self, batch: BatchState, score_SK: Tensor, ends_SK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Merge candidates that end into the finished beams: their scores, their indices, and which are finished."""
        is_top_K = torch.arange(2 * self.width, device=score_SK.device) < self.width
        ended_SK = ends_SK & is_top_K
        ended_score_SK = score_SK / self._length_penalty(batch.length_S) + (~ended_SK) * INVALID_SCORE
        score_SW, index_SW = torch.cat((batch.finished_scores_SW, ended_score_SK), 1).topk(self.width)
        return score_SW, index_SW, torch.cat((batch.is_finished_SW, ended_SK), 1).gather(1, index_SW)

    def _can_improve(
        self, batch: BatchState, running_SW: Tensor, finished_score_SW: Tensor, finished_SW: Tensor
    ) -> Tensor:
        """Return whether the best running beam may still beat the worst finished one."""
        generation = self._generation
        assumes_longest = generation.early_stopping == "never" and generation.length_penalty > 0
        length_S = batch.max_length_S - 1 if assumes_longest else batch.length_S
        best_S1 = running_SW[:, :1] / self._length_penalty(length_S)
        worst_SW = torch.where(finished_SW, finished_score_SW.min(1, keepdim=True).values, INVALID_SCORE)
        return (best_S1 > worst_SW).any(-1)

    def _length_penalty(self, tokens_S: Tensor) -> Tensor:
        """Compute the divisor of sums of this many log-probabilities."""
        return (tokens_S.double() ** self._generation.length_penalty).float()[:, None]
