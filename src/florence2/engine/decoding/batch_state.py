"""The state of the decoding batch: one slot for each request, a few rows (beams or samples) in each slot.

All tensors lie on the device and keep their shapes; a slot whose request is done stays unchanged until the next
request starts in it.

Shapes: S slots, W rows of a slot, K candidates of a step, T tokens, B slots that start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from florence2.devices import to_device

if TYPE_CHECKING:
    from florence2.engine.generation_config import LengthLimits, ModelGenerationConfig

STRIDE = 32  # views of the tables grow by this many tokens, so that shapes change rarely
INVALID_SCORE = -1e9  # the score of a row that does not exist (transformers' number, so that sums round alike)


@dataclass(frozen=True, eq=False)
class SearchStep:
    """One step of a search: the candidates (parent row, token, likelihood) and those that become the new rows.

    Beam search also returns the finished beams: `finished_index` counts through the finished beams so far, then the
    candidates.
    """

    parent_SK: Tensor
    token_SK: Tensor
    likelihood_SK: Tensor
    beam_index_SW: Tensor
    score_SW: Tensor
    is_finished_SW: Tensor
    is_done_S: Tensor
    finished_index_SW: Tensor | None = None
    finished_score_SW: Tensor | None = None


@dataclass(frozen=True, eq=False)
class BatchState:
    """The generated tokens and the limits of every slot.

    `tokens` begin with the start token and `likelihoods` lie beside them, packed by `LocationMass`. `cache_row` is the
    row of the KV cache that holds the keys and values of a token: when beams are reordered this table changes and the
    cache does not.
    `finished_*` are the finished beams, best first. `active` slots generate. `search` is the number of the search that
    chooses a slot's tokens.
    """

    tokens_SWT: Tensor
    likelihoods_SWT: Tensor
    cache_row_SWT: Tensor
    length_S: Tensor
    scores_SW: Tensor
    finished_tokens_SWT: Tensor
    finished_likelihoods_SWT: Tensor
    finished_scores_SW: Tensor
    is_finished_SW: Tensor
    active_S: Tensor
    min_length_S: Tensor
    max_length_S: Tensor
    no_repeat_ngram_size_S: Tensor
    seed_S: Tensor
    search_S: Tensor

    @classmethod
    def empty(cls, slots: int, width: int, tokens: int, device: torch.device) -> Self:
        """Allocate the tables, without an active slot."""
        tables = {
            item.name: torch.zeros(
                {"SWT": (slots, width, tokens), "SW": (slots, width), "S": (slots,)}[item.name.rpartition("_")[2]],
                dtype=_dtype(item.name),
                device=device,
            )
            for item in fields(cls)
        }
        state = cls(**tables)
        state.length_S.fill_(1)
        return state

    def view(self, slots: int, tokens: int, width: int | None = None) -> Self:
        """View the first slots, tokens and rows of the tables; writing to the view writes to the tables."""
        rows = slice(width)
        views = {}
        for name, table in self._tables():
            if name.endswith("SWT"):
                views[name] = table[:slots, rows, :tokens]
            else:
                views[name] = table[:slots, rows] if name.endswith("SW") else table[:slots]
        return type(self)(**views)

    def last_positions(self) -> Tensor:
        """Return the position of each slot's last token, cut to the view where the request is done."""
        return (self.length_S - 1).clamp(max=self.tokens_SWT.shape[-1] - 1)

    def start(
        self,
        slots: Sequence[int],
        limits: Sequence[LengthLimits],
        seeds: Sequence[int],
        searches: Sequence[int],
        model_config: ModelGenerationConfig,
    ) -> None:
        """Start a request in each of these slots, all with the same few operations."""
        rows = (
            slots,
            [each.min_length for each in limits],
            [each.max_length for each in limits],
            [each.no_repeat_ngram_size for each in limits],
            seeds,
            searches,
        )
        slot_B, *values = to_device(torch.tensor(rows), self.active_S.device)
        for name, table in self._tables():
            fill = model_config.pad_token_id if "tokens" in name else INVALID_SCORE if "scores" in name else 0
            table.index_fill_(0, slot_B, fill)
        for tokens_SWT in (self.tokens_SWT, self.finished_tokens_SWT):
            tokens_SWT[:, :, 0].index_fill_(0, slot_B, model_config.decoder_start_token_id)
        own_BWT = self._own_rows()[: len(slots), :, None].expand_as(self.cache_row_SWT[: len(slots)])
        self.cache_row_SWT.index_copy_(0, slot_B, own_BWT)
        self.length_S.index_fill_(0, slot_B, 1)
        # Only the first beam counts at first: the beams are still equal.
        self.scores_SW[:, 0].index_fill_(0, slot_B, 0)
        self.active_S.index_fill_(0, slot_B, True)
        numbers = (self.min_length_S, self.max_length_S, self.no_repeat_ngram_size_S, self.seed_S, self.search_S)
        for number_S, value_B in zip(numbers, values, strict=True):
            number_S.index_copy_(0, slot_B, value_B)

    def move_slot(self, source: int, target: int) -> None:
        """Copy a slot to another one and deactivate the source."""
        for _, table in self._tables():
            table[target] = table[source]
        self.active_S[source] = False

    def to_host_async(self) -> Self:
        """Start a copy to the host's memory, which the device makes when it has done its earlier work."""
        return type(self)(**{name: _host_copy(table) for name, table in self._tables()})

    def sequences(self, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Return the tokens and likelihoods of a slot that is done: finished beams, best first, or all rows."""
        has_beams = bool(self.finished_scores_SW[slot, 0] > INVALID_SCORE)
        tokens_SWT, likelihoods_SWT = (
            (self.finished_tokens_SWT, self.finished_likelihoods_SWT)
            if has_beams
            else (self.tokens_SWT, self.likelihoods_SWT)
        )
        return tokens_SWT[slot, :, :length], likelihoods_SWT[slot, :, :length]

    def append(self, step: SearchStep, member_S: Tensor | None = None) -> None:
        """Append one token to every active slot; `member_S` restricts it to the slots of one search."""
        update_S = self.active_S if member_S is None else self.active_S & member_S
        tokens_SKT = _put(_rows(self.tokens_SWT, step.parent_SK), self.length_S, step.token_SK)
        likelihoods_SKT = _put(_rows(self.likelihoods_SWT, step.parent_SK), self.length_S, step.likelihood_SK)
        beam_SW1 = step.beam_index_SW.unsqueeze(-1)
        cache_row_SWT = _rows(self.cache_row_SWT, step.parent_SK.gather(1, step.beam_index_SW))
        cache_row_SWT = _put(cache_row_SWT, self.length_S, self._own_rows())
        if step.finished_index_SW is not None and step.finished_score_SW is not None:
            tokens_SCT = torch.cat((self.finished_tokens_SWT, tokens_SKT), 1)
            likelihoods_SCT = torch.cat((self.finished_likelihoods_SWT, likelihoods_SKT), 1)
            _set(self.finished_tokens_SWT, _rows(tokens_SCT, step.finished_index_SW), update_S)
            _set(self.finished_likelihoods_SWT, _rows(likelihoods_SCT, step.finished_index_SW), update_S)
            _set(self.finished_scores_SW, step.finished_score_SW, update_S)
        _set(self.tokens_SWT, tokens_SKT.gather(1, beam_SW1.expand_as(self.tokens_SWT)), update_S)
        _set(self.likelihoods_SWT, likelihoods_SKT.gather(1, beam_SW1.expand_as(self.tokens_SWT)), update_S)
        _set(self.cache_row_SWT, cache_row_SWT, update_S)
        _set(self.scores_SW, step.score_SW, update_S)
        _set(self.is_finished_SW, step.is_finished_SW, update_S)
        self.length_S.add_(update_S)
        self.active_S.logical_and_(~step.is_done_S if member_S is None else ~(step.is_done_S & member_S))

    def _tables(self) -> list[tuple[str, Tensor]]:
        return [(item.name, getattr(self, item.name)) for item in fields(self)]

    def _own_rows(self) -> Tensor:
        slots, width = self.scores_SW.shape
        return torch.arange(width, device=self.scores_SW.device).expand(slots, width)


def round_up_to_stride(count: int) -> int:
    """Round up to a multiple of STRIDE."""
    return -(-count // STRIDE) * STRIDE


def _dtype(name: str) -> torch.dtype:
    """Return the dtype of a table by its name."""
    if name in ("is_finished_SW", "active_S"):
        return torch.bool
    return torch.float32 if "scores" in name else torch.long


def _host_copy(table: Tensor) -> Tensor:
    copy = torch.empty(table.shape, dtype=table.dtype, pin_memory=table.is_cuda)
    return copy.copy_(table, non_blocking=table.is_cuda)


def _set(target: Tensor, value: Tensor, update_S: Tensor) -> None:
    """Write the slots that `update_S` marks."""
    target.copy_(torch.where(update_S.view(-1, *(1,) * (target.dim() - 1)), value, target))


def _rows(table_SWT: Tensor, row_SK: Tensor) -> Tensor:
    """Gather K rows of each slot."""
    return table_SWT.gather(1, row_SK.unsqueeze(-1).expand(-1, -1, table_SWT.shape[-1]))


def _put(table_SKT: Tensor, position_S: Tensor, value_SK: Tensor) -> Tensor:
    """Write one value into each row, at its slot's position, cut to the view where the request is done."""
    position_SK1 = position_S.clamp(max=table_SKT.shape[-1] - 1).view(-1, 1, 1).expand(*value_SK.shape, 1)
    return table_SKT.scatter(2, position_SK1, value_SK.unsqueeze(-1))
