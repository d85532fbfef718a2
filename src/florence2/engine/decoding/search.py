"""How the next token is chosen, for every slot at once and on the device.

Greedy, sampling and beams are the arithmetic of transformers' `generate`, operation by operation, so that equal logits
give equal tokens. Ties to the last bit have the same rule in both: greedily the lowest token number wins
(`torch.argmax`); among beams whatever `torch.topk` takes from the sums of one picture, laid out beam by beam and token
by token, as both lay them out. Knows no pictures, no words and no weights.

Shapes: S slots, W rows of a slot, K candidates of a step, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from florence2.engine.decoding.batch_state import INVALID_SCORE, BatchState, SearchStep
from florence2.engine.decoding.logits_processors import (
    NEG_INF,
    LogitsProcessors,
    blocked_topk,
    forced_tokens,
    gumbel_sample,
    warp,
)
from florence2.engine.generation_config import GenerationConfig, ModelGenerationConfig


class Search(Protocol):
    """A way to choose; `width` is the number of rows it needs in a slot."""

    width: int

    def choose(self, slots: BatchState, logits_SWV: Tensor) -> SearchStep:
        """Choose the next token of every row."""


def search_for(settings: GenerationConfig, rules: ModelGenerationConfig) -> Search:
    """Pick the search that the settings describe."""
    return BeamSearch(settings, rules) if settings.num_beams > 1 else GreedyOrSampling(settings, rules)


class GreedyOrSampling:
    """Greedy search, or sampling: each row goes on by itself."""

    def __init__(self, settings: GenerationConfig, rules: ModelGenerationConfig) -> None:
        self.width = settings.num_return_sequences
        self._settings, self._rules = settings, rules
        self._allow = LogitsProcessors(settings, rules)

    def choose(self, slots: BatchState, logits_SWV: Tensor) -> SearchStep:
        """Take the likeliest token of each row, or draw one."""
        rules = self._rules
        total_SW = logits_SWV.logsumexp(-1)
        raw_SWV = logits_SWV.clone() if self._settings.repetition_penalty != 1.0 else logits_SWV
        scores_SWV = self._allow(slots, logits_SWV)
        if self._settings.do_sample:
            scores_SWV = gumbel_sample(slots, warp(scores_SWV, self._settings, least=1))
        token_SW = scores_SWV.argmax(-1)
        for is_forced_S, token in forced_tokens(slots, rules):
            token_SW = token_SW.masked_fill(is_forced_S[:, None], token)
        logprob_SW = raw_SWV.gather(-1, token_SW.unsqueeze(-1)).squeeze(-1) - total_SW
        token_SW = token_SW.masked_fill(slots.is_finished_SW, rules.pad_token_id)
        is_last_S1 = (slots.length_S + 1 >= slots.max_length_S)[:, None]
        finished_SW = slots.is_finished_SW | (token_SW == rules.eos_token_id) | is_last_S1
        rows_SW = torch.arange(self.width, device=token_SW.device).expand_as(token_SW)
        return SearchStep(
            parent_SK=rows_SW,
            token_SK=token_SW,
            logprob_SK=logprob_SW,
            beam_index_SW=rows_SW,
            score_SW=slots.scores_SW,
            is_finished_SW=finished_SW,
            is_done_S=finished_SW.all(-1),
        )


class BeamSearch:
    """Beam search as in transformers: twice as many candidates as beams, finished ones kept apart."""

    def __init__(self, settings: GenerationConfig, rules: ModelGenerationConfig) -> None:
        self.width = settings.num_beams
        self._settings, self._rules = settings, rules
        self._allow = LogitsProcessors(settings, rules)

    def choose(self, slots: BatchState, logits_SWV: Tensor) -> SearchStep:
        """Choose the candidates, the beams that go on, and those that are kept."""
        score_SK, parent_SK, token_SK, logprob_SK = self._candidates(slots, logits_SWV)
        is_last_S1 = (slots.length_S + 1 >= slots.max_length_S)[:, None]
        ends_SK = (token_SK == self._rules.eos_token_id) | is_last_S1
        going_on_SK = score_SK + ends_SK.float() * INVALID_SCORE
        pick_SW = going_on_SK.topk(self.width).indices
        running_SW = going_on_SK.gather(1, pick_SW)
        kept_SW, keep_SW, finished_SW = self._merge_finished(slots, score_SK, ends_SK)
        is_open_S = self._can_improve(slots, running_SW, kept_SW, finished_SW)
        is_full_S = finished_SW.all(-1) & (self._settings.early_stopping is True)
        return SearchStep(
            parent_SK=parent_SK,
            token_SK=token_SK,
            logprob_SK=logprob_SK,
            beam_index_SW=pick_SW,
            score_SW=running_SW,
            is_finished_SW=finished_SW,
            is_done_S=~is_open_S | is_full_S | ends_SK.all(-1),
            finished_index_SW=keep_SW,
            finished_score_SW=kept_SW,
        )

    def _candidates(self, slots: BatchState, logits_SWV: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give score, parent, token and log-probability of the 2W best ways to go on."""
        vocabulary = logits_SWV.shape[-1]
        raw_SWV = logits_SWV.log_softmax(-1)
        allowed_SWV = self._allow(slots, raw_SWV.clone() if self._settings.repetition_penalty != 1.0 else raw_SWV)
        if self._settings.do_sample:
            allowed_SWV = warp(allowed_SWV, self._settings, least=2)
        index_SK, score_SK = self._best(slots, allowed_SWV)
        logprob_SK = raw_SWV.flatten(1).gather(1, index_SK)
        parent_SK, token_SK = index_SK // vocabulary, index_SK % vocabulary
        own_SK = torch.arange(2 * self.width, device=index_SK.device).expand_as(index_SK) % self.width
        forced_SK = torch.cat((slots.scores_SW, torch.full_like(slots.scores_SW, NEG_INF)), 1)
        for is_forced_S, token in forced_tokens(slots, self._rules):  # each beam goes on, at no cost
            is_forced_S1 = is_forced_S[:, None]
            score_SK = torch.where(is_forced_S1, forced_SK, score_SK)
            parent_SK = torch.where(is_forced_S1, own_SK, parent_SK)
            token_SK = token_SK.masked_fill(is_forced_S1, token)
        return score_SK, parent_SK, token_SK, logprob_SK

    def _best(self, slots: BatchState, allowed_SWV: Tensor) -> tuple[Tensor, Tensor]:
        """Give the 2W best candidates, or as many drawn ones: row by row and token by token counted, and their sums."""
        if allowed_SWV.is_cuda and not self._settings.do_sample:
            score_SK, index_SK = blocked_topk(allowed_SWV, slots.scores_SW, 2 * self.width)
            return index_SK, score_SK
        sums_SWV = allowed_SWV + slots.scores_SW.unsqueeze(-1)
        order_SWV = gumbel_sample(slots, sums_SWV) if self._settings.do_sample else sums_SWV
        index_SK = order_SWV.flatten(1).topk(2 * self.width).indices
        return index_SK, sums_SWV.flatten(1).gather(1, index_SK)

    def _merge_finished(self, slots: BatchState, score_SK: Tensor, ends_SK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Merge what just finished into what is kept: scores, where they come from, which are finished."""
        is_top_K = torch.arange(2 * self.width, device=score_SK.device) < self.width
        just_SK = ends_SK & is_top_K
        ended_SK = score_SK / self._length_penalty(slots.length_S) + (~just_SK) * INVALID_SCORE
        kept_SW, keep_SW = torch.cat((slots.finished_scores_SW, ended_SK), 1).topk(self.width)
        return kept_SW, keep_SW, torch.cat((slots.is_finished_SW, just_SK), 1).gather(1, keep_SW)

    def _can_improve(self, slots: BatchState, running_SW: Tensor, kept_SW: Tensor, finished_SW: Tensor) -> Tensor:
        """Tell whether the best running beam might still beat the worst kept one."""
        settings = self._settings
        hopes_to_be_long = settings.early_stopping == "never" and settings.length_penalty > 0
        hoped_S = slots.max_length_S - 1 if hopes_to_be_long else slots.length_S
        best_S1 = running_SW[:, :1] / self._length_penalty(hoped_S)
        worst_SW = torch.where(finished_SW, kept_SW.min(1, keepdim=True).values, INVALID_SCORE)
        return (best_S1 > worst_SW).any(-1)

    def _length_penalty(self, tokens_S: Tensor) -> Tensor:
        """Give what sums of so many log-probabilities are divided by."""
        return (tokens_S.double() ** self._settings.length_penalty).float()[:, None]
