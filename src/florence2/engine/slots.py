"""The table of what is being answered: one slot for each question, a few rows (beams, or samples) in each slot.

All tensors lie on the device and keep their shapes; a slot that is done stays as it is until it is taken again.
Knows neither how tokens are chosen nor what they mean.

Shapes: S slots, W rows of a slot, K candidates of a step, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from florence2.engine.options import Limits, Rules

STRIDE = 32  # tables grow, and are looked at, by this many places, so that shapes change rarely
NEVER = -1e9  # the score of a row that does not exist (transformers' number, so that sums round alike)


@dataclass(frozen=True, eq=False)
class Choice:
    """One step: candidates (which row they go on from, with which token), and which of them the rows become.

    Beams also say what is kept as finished: `keep` counts through the kept ones, then the candidates.
    """

    parent_SK: Tensor
    token_SK: Tensor
    logprob_SK: Tensor
    pick_SW: Tensor
    score_SW: Tensor
    finished_SW: Tensor
    done_S: Tensor
    keep_SW: Tensor | None = None
    kept_score_SW: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Slots:
    """What each slot has said so far.

    `tokens` begin with the start token, `logprobs` lie beside them. `origin` is the row of the cache that holds the
    keys and values of a token: when beams part, this table moves and the cache does not. `kept` are the finished
    beams, best first. `busy`: the slot is being answered.
    """

    tokens_SWT: Tensor
    logprobs_SWT: Tensor
    origin_SWT: Tensor
    length_S: Tensor
    scores_SW: Tensor
    kept_tokens_SWT: Tensor
    kept_logprobs_SWT: Tensor
    kept_scores_SW: Tensor
    finished_SW: Tensor
    busy_S: Tensor
    least_S: Tensor
    most_S: Tensor
    ngram_S: Tensor
    seed_S: Tensor

    @classmethod
    def empty(cls, slots: int, width: int, tokens: int, device: torch.device) -> Self:
        """Make a table where nothing is being answered."""
        whole = {
            name: torch.zeros(slots, dtype=torch.long, device=device)
            for name in ("length_S", "least_S", "most_S", "ngram_S", "seed_S")
        }
        busy = torch.zeros(slots, dtype=torch.bool, device=device)
        scores = {name: torch.zeros(slots, width, device=device) for name in ("scores_SW", "kept_scores_SW")}
        words = {
            name: torch.zeros(slots, width, tokens, dtype=torch.long, device=device)
            for name in ("tokens_SWT", "origin_SWT", "kept_tokens_SWT")
        }
        odds = {
            name: torch.zeros(slots, width, tokens, device=device) for name in ("logprobs_SWT", "kept_logprobs_SWT")
        }
        finished = torch.zeros(slots, width, dtype=torch.bool, device=device)
        table = cls(**whole, **scores, **words, **odds, finished_SW=finished, busy_S=busy)
        table.length_S.fill_(1)
        return table

    def part(self, slots: int, tokens: int) -> Self:
        """Look at the first slots and the first tokens; writing to the part writes to the whole."""
        parts = {}
        for item in fields(self):
            whole = getattr(self, item.name)
            parts[item.name] = whole[:slots, :, :tokens] if item.name.endswith("SWT") else whole[:slots]
        return type(self)(**parts)

    def take(self, slot: int, limits: Limits, rules: Rules, seed: int) -> None:
        """Begin an answer in a slot."""
        width = self.tokens_SWT.shape[1]
        for tokens_WT in (self.tokens_SWT[slot], self.kept_tokens_SWT[slot]):
            tokens_WT.fill_(rules.pad)
            tokens_WT[:, 0] = rules.start
        self.logprobs_SWT[slot] = 0
        self.kept_logprobs_SWT[slot] = 0
        self.origin_SWT[slot] = torch.arange(width, device=self.origin_SWT.device)[:, None]
        self.length_S[slot] = 1
        # Only the first beam counts at first, or all beams would say the same.
        self.scores_SW[slot] = NEVER
        self.scores_SW[slot, 0] = 0
        self.kept_scores_SW[slot] = NEVER
        self.finished_SW[slot] = False
        self.busy_S[slot] = True
        self.least_S[slot], self.most_S[slot], self.ngram_S[slot] = limits.least, limits.most, limits.ngram
        self.seed_S[slot] = seed

    def move(self, source: int, target: int) -> None:
        """Let the answer of one slot go on in another."""
        for item in fields(self):
            whole = getattr(self, item.name)
            whole[target] = whole[source]
        self.busy_S[source] = False

    def answers(self, slot: int, most: int) -> tuple[Tensor, Tensor]:
        """Give the tokens and log-probabilities of a slot that is done: kept beams, best first, or all rows."""
        has_beams = bool(self.kept_scores_SW[slot, 0] > NEVER)
        tokens_SWT, logprobs_SWT = (
            (self.kept_tokens_SWT, self.kept_logprobs_SWT) if has_beams else (self.tokens_SWT, self.logprobs_SWT)
        )
        return tokens_SWT[slot, :, :most], logprobs_SWT[slot, :, :most]

    def append(self, choice: Choice) -> None:
        """Let every busy slot move by one token."""
        tokens_SKT, logprobs_SKT = self._candidates(choice)
        if choice.keep_SW is not None:
            self._keep(choice, tokens_SKT, logprobs_SKT)
        pick_SW1 = choice.pick_SW.unsqueeze(-1)
        parent_SW = choice.parent_SK.gather(1, choice.pick_SW)
        origin_SWT = _rows(self.origin_SWT, parent_SW)
        origin_SWT = _put(origin_SWT, self.length_S, self._own_rows())
        self._set(self.tokens_SWT, tokens_SKT.gather(1, pick_SW1.expand_as(self.tokens_SWT)))
        self._set(self.logprobs_SWT, logprobs_SKT.gather(1, pick_SW1.expand_as(self.tokens_SWT)))
        self._set(self.origin_SWT, origin_SWT)
        self._set(self.scores_SW, choice.score_SW)
        self._set(self.finished_SW, choice.finished_SW)
        self.length_S.add_(self.busy_S)
        self.busy_S.logical_and_(~choice.done_S)

    def _candidates(self, choice: Choice) -> tuple[Tensor, Tensor]:
        """Write each candidate out: its parent's tokens and log-probabilities, and its own at the end."""
        tokens_SKT = _put(_rows(self.tokens_SWT, choice.parent_SK), self.length_S, choice.token_SK)
        logprobs_SKT = _put(_rows(self.logprobs_SWT, choice.parent_SK), self.length_S, choice.logprob_SK)
        return tokens_SKT, logprobs_SKT

    def _keep(self, choice: Choice, tokens_SKT: Tensor, logprobs_SKT: Tensor) -> None:
        """Take finished candidates among the kept ones; `keep` counts through the kept, then the candidates."""
        assert choice.keep_SW is not None
        self._set(self.kept_tokens_SWT, _rows(torch.cat((self.kept_tokens_SWT, tokens_SKT), 1), choice.keep_SW))
        self._set(self.kept_logprobs_SWT, _rows(torch.cat((self.kept_logprobs_SWT, logprobs_SKT), 1), choice.keep_SW))
        self._set(self.kept_scores_SW, choice.kept_score_SW)

    def _own_rows(self) -> Tensor:
        slots, width = self.scores_SW.shape
        return torch.arange(width, device=self.scores_SW.device).expand(slots, width)

    def _set(self, target: Tensor, value: Tensor | None) -> None:
        """Write the busy slots' part of a value."""
        assert value is not None
        busy = self.busy_S.view(-1, *(1,) * (target.dim() - 1))
        target.copy_(torch.where(busy, value, target))


class Watch:
    """Learns which slots are done; with `every` > 1 it asks so seldom, and so early, that the device never waits.

    What it hears is then `every` steps old. That does no harm: a slot that is done stays as it is, and one that was
    taken again since is told by its question.
    """

    def __init__(self, every: int) -> None:
        self._every, self._steps = every, 0
        self._asked: tuple[Tensor, list[Any], torch.cuda.Event | None] | None = None

    def done(self, busy_S: Tensor, questions: Sequence[Any]) -> list[int]:
        """List the slots whose question is known to be answered."""
        self._steps += 1
        if self._every == 1:
            return _ended(busy_S.tolist(), questions, questions)
        if self._steps % self._every:
            return []
        ended: list[int] = []
        if self._asked is not None:
            heard_S, asked_about, event = self._asked
            if event is not None:
                event.synchronize()
            ended = _ended(heard_S.tolist(), asked_about, questions)
        self._asked = self._ask(busy_S), list(questions), None
        if busy_S.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._asked = *self._asked[:2], event
        return ended

    def _ask(self, busy_S: Tensor) -> Tensor:
        """Start a copy that the device makes when it comes to it."""
        heard_S = torch.empty(busy_S.shape, dtype=torch.bool, pin_memory=busy_S.is_cuda)
        return heard_S.copy_(busy_S, non_blocking=True)


def whole_strides(places: int) -> int:
    """Round up to a multiple of STRIDE."""
    return -(-places // STRIDE) * STRIDE


def _ended(busy: Sequence[bool], asked_about: Sequence[Any], questions: Sequence[Any]) -> list[int]:
    return [
        slot
        for slot, (is_busy, then, now) in enumerate(zip(busy, asked_about, questions, strict=True))
        if now is not None and then is now and not is_busy
    ]


def _rows(table_SWT: Tensor, row_SK: Tensor) -> Tensor:
    """Give K rows of each slot."""
    return table_SWT.gather(1, row_SK.unsqueeze(-1).expand(-1, -1, table_SWT.shape[-1]))


def _put(table_SKT: Tensor, position_S: Tensor, value_SK: Tensor) -> Tensor:
    """Write one value in each row, at its slot's position; slots that are done may be at their end."""
    position_SK1 = position_S.clamp(max=table_SKT.shape[-1] - 1).view(-1, 1, 1).expand(*value_SK.shape, 1)
    return table_SKT.scatter(2, position_SK1, value_SK.unsqueeze(-1))
