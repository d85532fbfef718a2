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

from florence2.engine.decoding.batch_state import NEVER, Choice, Slots
from florence2.engine.decoding.logits_processors import NOTHING, Allow, draw, forced, largest, warp
from florence2.engine.engine_config import GenerationSettings, Rules


class Search(Protocol):
    """A way to choose; `width` is the number of rows it needs in a slot."""

    width: int

    def choose(self, slots: Slots, logits_SWV: Tensor) -> Choice:
        """Choose the next token of every row."""


def search_for(settings: GenerationSettings, rules: Rules) -> Search:
    """Pick the search that the settings describe."""
    return Beams(settings, rules) if settings.num_beams > 1 else Rows(settings, rules)


class Rows:
    """Greedy search, or sampling: each row goes on by itself."""

    def __init__(self, settings: GenerationSettings, rules: Rules) -> None:
        self.width = settings.num_return_sequences
        self._settings, self._rules = settings, rules
        self._allow = Allow(settings, rules)

    def choose(self, slots: Slots, logits_SWV: Tensor) -> Choice:
        """Take the likeliest token of each row, or draw one."""
        rules = self._rules
        total_SW = logits_SWV.logsumexp(-1)
        raw_SWV = logits_SWV.clone() if self._settings.repetition_penalty != 1.0 else logits_SWV
        scores_SWV = self._allow(slots, logits_SWV)
        if self._settings.do_sample:
            scores_SWV = draw(slots, warp(scores_SWV, self._settings, least=1))
        token_SW = scores_SWV.argmax(-1)
        for is_forced_S, token in forced(slots, rules):
            token_SW = token_SW.masked_fill(is_forced_S[:, None], token)
        logprob_SW = raw_SWV.gather(-1, token_SW.unsqueeze(-1)).squeeze(-1) - total_SW
        token_SW = token_SW.masked_fill(slots.finished_SW, rules.pad)
        is_last_S1 = (slots.length_S + 1 >= slots.most_S)[:, None]
        finished_SW = slots.finished_SW | (token_SW == rules.eos) | is_last_S1
        rows_SW = torch.arange(self.width, device=token_SW.device).expand_as(token_SW)
        return Choice(
            parent_SK=rows_SW,
            token_SK=token_SW,
            logprob_SK=logprob_SW,
            pick_SW=rows_SW,
            score_SW=slots.scores_SW,
            finished_SW=finished_SW,
            done_S=finished_SW.all(-1),
        )


class Beams:
    """Beam search as in transformers: twice as many candidates as beams, finished ones kept apart."""

    def __init__(self, settings: GenerationSettings, rules: Rules) -> None:
        self.width = settings.num_beams
        self._settings, self._rules = settings, rules
        self._allow = Allow(settings, rules)

    def choose(self, slots: Slots, logits_SWV: Tensor) -> Choice:
        """Choose the candidates, the beams that go on, and those that are kept."""
        score_SK, parent_SK, token_SK, logprob_SK = self._candidates(slots, logits_SWV)
        is_last_S1 = (slots.length_S + 1 >= slots.most_S)[:, None]
        ends_SK = (token_SK == self._rules.eos) | is_last_S1
        going_on_SK = score_SK + ends_SK.float() * NEVER
        pick_SW = going_on_SK.topk(self.width).indices
        running_SW = going_on_SK.gather(1, pick_SW)
        kept_SW, keep_SW, finished_SW = self._kept(slots, score_SK, ends_SK)
        is_open_S = self._is_open(slots, running_SW, kept_SW, finished_SW)
        is_full_S = finished_SW.all(-1) & (self._settings.early_stopping is True)
        return Choice(
            parent_SK=parent_SK,
            token_SK=token_SK,
            logprob_SK=logprob_SK,
            pick_SW=pick_SW,
            score_SW=running_SW,
            finished_SW=finished_SW,
            done_S=~is_open_S | is_full_S | ends_SK.all(-1),
            keep_SW=keep_SW,
            kept_score_SW=kept_SW,
        )

    def _candidates(self, slots: Slots, logits_SWV: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        forced_SK = torch.cat((slots.scores_SW, torch.full_like(slots.scores_SW, NOTHING)), 1)
        for is_forced_S, token in forced(slots, self._rules):  # each beam goes on, at no cost
            is_forced_S1 = is_forced_S[:, None]
            score_SK = torch.where(is_forced_S1, forced_SK, score_SK)
            parent_SK = torch.where(is_forced_S1, own_SK, parent_SK)
            token_SK = token_SK.masked_fill(is_forced_S1, token)
        return score_SK, parent_SK, token_SK, logprob_SK

    def _best(self, slots: Slots, allowed_SWV: Tensor) -> tuple[Tensor, Tensor]:
        """Give the 2W best candidates, or as many drawn ones: row by row and token by token counted, and their sums."""
        if allowed_SWV.is_cuda and not self._settings.do_sample:
            score_SK, index_SK = largest(allowed_SWV, slots.scores_SW, 2 * self.width)
            return index_SK, score_SK
        sums_SWV = allowed_SWV + slots.scores_SW.unsqueeze(-1)
        order_SWV = draw(slots, sums_SWV) if self._settings.do_sample else sums_SWV
        index_SK = order_SWV.flatten(1).topk(2 * self.width).indices
        return index_SK, sums_SWV.flatten(1).gather(1, index_SK)

    def _kept(self, slots: Slots, score_SK: Tensor, ends_SK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Merge what just finished into what is kept: scores, where they come from, which are finished."""
        is_top_K = torch.arange(2 * self.width, device=score_SK.device) < self.width
        just_SK = ends_SK & is_top_K
        ended_SK = score_SK / self._worth(slots.length_S) + (~just_SK) * NEVER
        kept_SW, keep_SW = torch.cat((slots.kept_scores_SW, ended_SK), 1).topk(self.width)
        return kept_SW, keep_SW, torch.cat((slots.finished_SW, just_SK), 1).gather(1, keep_SW)

    def _is_open(self, slots: Slots, running_SW: Tensor, kept_SW: Tensor, finished_SW: Tensor) -> Tensor:
        """Tell whether the best running beam might still beat the worst kept one."""
        settings = self._settings
        hopes_to_be_long = settings.early_stopping == "never" and settings.length_penalty > 0
        hoped_S = slots.most_S - 1 if hopes_to_be_long else slots.length_S
        best_S1 = running_SW[:, :1] / self._worth(hoped_S)
        worst_SW = torch.where(finished_SW, kept_SW.min(1, keepdim=True).values, NEVER)
        return (best_S1 > worst_SW).any(-1)

    def _worth(self, tokens_S: Tensor) -> Tensor:
        """Give what sums of so many log-probabilities are divided by."""
        return (tokens_S.double() ** self._settings.length_penalty).float()[:, None]
