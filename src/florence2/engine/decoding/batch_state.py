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

from florence2.devices import to_device

if TYPE_CHECKING:
    from florence2.engine.generation_config import LengthLimits, ModelGenerationConfig

STRIDE = 32  # tables grow, and are looked at, by this many places, so that shapes change rarely
INVALID_SCORE = -1e9  # the score of a row that does not exist (transformers' number, so that sums round alike)


@dataclass(frozen=True, eq=False)
class SearchStep:
    """One step: candidates (which row they go on from, with which token), and which of them the rows become.

    Beams also say what is kept as finished: `keep` counts through the kept ones, then the candidates.
    """

    parent_SK: Tensor
    token_SK: Tensor
    logprob_SK: Tensor
    beam_index_SW: Tensor
    score_SW: Tensor
    is_finished_SW: Tensor
    is_done_S: Tensor
    finished_index_SW: Tensor | None = None
    finished_score_SW: Tensor | None = None


@dataclass(frozen=True, eq=False)
class BatchState:
    """What each slot has said so far.

    `tokens` begin with the start token, `logprobs` lie beside them. `origin` is the row of the cache that holds the
    keys and values of a token: when beams part, this table moves and the cache does not. `kept` are the finished
    beams, best first. `busy`: the slot is being answered.
    """

    tokens_SWT: Tensor
    logprobs_SWT: Tensor
    cache_row_SWT: Tensor
    length_S: Tensor
    scores_SW: Tensor
    finished_tokens_SWT: Tensor
    finished_logprobs_SWT: Tensor
    finished_scores_SW: Tensor
    is_finished_SW: Tensor
    active_S: Tensor
    min_length_S: Tensor
    max_length_S: Tensor
    no_repeat_ngram_size_S: Tensor
    seed_S: Tensor

    @classmethod
    def empty(cls, slots: int, width: int, tokens: int, device: torch.device) -> Self:
        """Make a table where nothing is being answered."""
        whole = {
            name: torch.zeros(slots, dtype=torch.long, device=device)
            for name in ("length_S", "min_length_S", "max_length_S", "no_repeat_ngram_size_S", "seed_S")
        }
        busy = torch.zeros(slots, dtype=torch.bool, device=device)
        scores = {name: torch.zeros(slots, width, device=device) for name in ("scores_SW", "finished_scores_SW")}
        words = {
            name: torch.zeros(slots, width, tokens, dtype=torch.long, device=device)
            for name in ("tokens_SWT", "cache_row_SWT", "finished_tokens_SWT")
        }
        odds = {
            name: torch.zeros(slots, width, tokens, device=device) for name in ("logprobs_SWT", "finished_logprobs_SWT")
        }
        finished = torch.zeros(slots, width, dtype=torch.bool, device=device)
        table = cls(**whole, **scores, **words, **odds, is_finished_SW=finished, active_S=busy)
        table.length_S.fill_(1)
        return table

    def view(self, slots: int, tokens: int) -> Self:
        """Look at the first slots and the first tokens; writing to the part writes to the whole."""
        parts = {
            name: whole[:slots, :, :tokens] if name.endswith("SWT") else whole[:slots] for name, whole in self._tables()
        }
        return type(self)(**parts)

    def last_positions(self) -> Tensor:
        """Where the last token stands; that of a slot which is done may lie behind the part that is looked at."""
        return (self.length_S - 1).clamp(max=self.tokens_SWT.shape[-1] - 1)

    def start(
        self, slots: Sequence[int], limits: Sequence[LengthLimits], rules: ModelGenerationConfig, seeds: Sequence[int]
    ) -> None:
        """Begin an answer in each of these slots, all of them with the same few operations."""
        bounds = (
            [each.min_length for each in limits],
            [each.max_length for each in limits],
            [each.no_repeat_ngram_size for each in limits],
        )
        numbers = to_device(torch.tensor([slots, *bounds, seeds]), self.active_S.device)
        slot_B = numbers[0]
        for name, whole in self._tables():
            whole.index_fill_(
                0, slot_B, rules.pad_token_id if "tokens" in name else INVALID_SCORE if "scores" in name else 0
            )
        for words_SWT in (self.tokens_SWT, self.finished_tokens_SWT):
            words_SWT[:, :, 0].index_fill_(0, slot_B, rules.decoder_start_token_id)
        self.cache_row_SWT.index_copy_(
            0, slot_B, self._own_rows()[: len(slots), :, None].expand_as(self.cache_row_SWT[: len(slots)])
        )
        self.length_S.index_fill_(0, slot_B, 1)
        # Only the first beam counts at first, or all beams would say the same.
        self.scores_SW[:, 0].index_fill_(0, slot_B, 0)
        self.active_S.index_fill_(0, slot_B, True)
        for whole, numbers_B in zip(
            (self.min_length_S, self.max_length_S, self.no_repeat_ngram_size_S, self.seed_S), numbers[1:], strict=True
        ):
            whole.index_copy_(0, slot_B, numbers_B)

    def move_slot(self, source: int, target: int) -> None:
        """Let the answer of one slot go on in another."""
        for _, whole in self._tables():
            whole[target] = whole[source]
        self.active_S[source] = False

    def to_host_async(self) -> Self:
        """Start a copy to the host's memory, which the device makes when it comes to it."""
        return type(self)(**{name: _host_copy(whole) for name, whole in self._tables()})

    def sequences(self, slot: int, most: int) -> tuple[Tensor, Tensor]:
        """Give the tokens and log-probabilities of a slot that is done: kept beams, best first, or all rows."""
        has_beams = bool(self.finished_scores_SW[slot, 0] > INVALID_SCORE)
        tokens_SWT, logprobs_SWT = (
            (self.finished_tokens_SWT, self.finished_logprobs_SWT)
            if has_beams
            else (self.tokens_SWT, self.logprobs_SWT)
        )
        return tokens_SWT[slot, :, :most], logprobs_SWT[slot, :, :most]

    def append(self, choice: SearchStep) -> None:
        """Let every busy slot move by one token."""
        tokens_SKT, logprobs_SKT = self._candidates(choice)
        if choice.finished_index_SW is not None:
            self._merge_finished(choice, tokens_SKT, logprobs_SKT)
        pick_SW1 = choice.beam_index_SW.unsqueeze(-1)
        parent_SW = choice.parent_SK.gather(1, choice.beam_index_SW)
        origin_SWT = _rows(self.cache_row_SWT, parent_SW)
        origin_SWT = _put(origin_SWT, self.length_S, self._own_rows())
        self._set(self.tokens_SWT, tokens_SKT.gather(1, pick_SW1.expand_as(self.tokens_SWT)))
        self._set(self.logprobs_SWT, logprobs_SKT.gather(1, pick_SW1.expand_as(self.tokens_SWT)))
        self._set(self.cache_row_SWT, origin_SWT)
        self._set(self.scores_SW, choice.score_SW)
        self._set(self.is_finished_SW, choice.is_finished_SW)
        self.length_S.add_(self.active_S)
        self.active_S.logical_and_(~choice.is_done_S)

    def _tables(self) -> list[tuple[str, Tensor]]:
        return [(item.name, getattr(self, item.name)) for item in fields(self)]

    def _candidates(self, choice: SearchStep) -> tuple[Tensor, Tensor]:
        """Write each candidate out: its parent's tokens and log-probabilities, and its own at the end."""
        tokens_SKT = _put(_rows(self.tokens_SWT, choice.parent_SK), self.length_S, choice.token_SK)
        logprobs_SKT = _put(_rows(self.logprobs_SWT, choice.parent_SK), self.length_S, choice.logprob_SK)
        return tokens_SKT, logprobs_SKT

    def _merge_finished(self, choice: SearchStep, tokens_SKT: Tensor, logprobs_SKT: Tensor) -> None:
        """Take finished candidates among the kept ones; `keep` counts through the kept, then the candidates."""
        assert choice.finished_index_SW is not None
        self._set(
            self.finished_tokens_SWT,
            _rows(torch.cat((self.finished_tokens_SWT, tokens_SKT), 1), choice.finished_index_SW),
        )
        self._set(
            self.finished_logprobs_SWT,
            _rows(torch.cat((self.finished_logprobs_SWT, logprobs_SKT), 1), choice.finished_index_SW),
        )
        self._set(self.finished_scores_SW, choice.finished_score_SW)

    def _own_rows(self) -> Tensor:
        slots, width = self.scores_SW.shape
        return torch.arange(width, device=self.scores_SW.device).expand(slots, width)

    def _set(self, target: Tensor, value: Tensor | None) -> None:
        """Write the busy slots' part of a value."""
        assert value is not None
        busy = self.active_S.view(-1, *(1,) * (target.dim() - 1))
        target.copy_(torch.where(busy, value, target))


class CompletionPoller:
    """Learns which slots are done, and what they say; with `every` > 1 so seldom and so late that no device waits.

    What it hears is then `every` steps old. That does no harm: a slot that is done stays as it is, and one that was
    taken again since is told by its question.
    """

    def __init__(self, interval: int) -> None:
        self._every, self._steps = interval, 0
        self._asked: tuple[BatchState, list[Any], torch.cuda.Event | None] | None = None

    def done(self, slots: BatchState, questions: Sequence[Any]) -> tuple[list[int], BatchState]:
        """List the slots whose question is known to be answered, and give the table to read the answers from."""
        self._steps += 1
        if self._every == 1:
            return _ended(slots, questions, questions), slots
        if self._steps % self._every:
            return [], slots
        asked, self._asked = self._asked, (slots.to_host_async(), list(questions), _mark(slots.active_S.device))
        if asked is None:
            return [], slots
        heard, asked_about, event = asked
        if event is not None:
            event.synchronize()
        return _ended(heard, asked_about, questions), heard


def round_up_to_stride(places: int) -> int:
    """Round up to a multiple of STRIDE."""
    return -(-places // STRIDE) * STRIDE


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """Note where the device's work has come to, to wait for it later; None: whatever was asked for is done."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _host_copy(whole: Tensor) -> Tensor:
    copy = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=whole.is_cuda)
    return copy.copy_(whole, non_blocking=whole.is_cuda)


def _ended(slots: BatchState, asked_about: Sequence[Any], questions: Sequence[Any]) -> list[int]:
    return [
        slot
        for slot, (is_busy, then, now) in enumerate(zip(slots.active_S.tolist(), asked_about, questions, strict=True))
        if now is not None and then is now and not is_busy
    ]


def _rows(table_SWT: Tensor, row_SK: Tensor) -> Tensor:
    """Give K rows of each slot."""
    return table_SWT.gather(1, row_SK.unsqueeze(-1).expand(-1, -1, table_SWT.shape[-1]))


def _put(table_SKT: Tensor, position_S: Tensor, value_SK: Tensor) -> Tensor:
    """Write one value in each row, at its slot's position; slots that are done may be at their end."""
    position_SK1 = position_S.clamp(max=table_SKT.shape[-1] - 1).view(-1, 1, 1).expand(*value_SK.shape, 1)
    return table_SKT.scatter(2, position_SK1, value_SK.unsqueeze(-1))
