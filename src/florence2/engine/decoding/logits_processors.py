"""How likely each token is to be next: what may not be said, what is drawn by chance, which are the likeliest.

On the device, and without waiting for it. Knows no beams.

Shapes: S slots, W rows of a slot, K candidates of a step, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florence2.engine.decoding.batch_state import BatchState
from florence2.engine.generation_config import GenerationConfig, ModelGenerationConfig

NEG_INF = -float("inf")
BLOCK = 128  # tokens that `largest` looks at together


def blocked_topk(scores_SWV: Tensor, added_SW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Give the largest of all sums of a slot, and where they stand among its W x V, as `topk` does.

    A GPU's `topk` reads everything several times. The largest are in the blocks whose own largest are largest, so here
    everything is read once, and then C blocks of L tokens. Ties may fall in another order.
    """
    vocabulary = scores_SWV.shape[-1]
    whole = vocabulary // BLOCK * BLOCK
    most_SWB = scores_SWV[..., :whole].view(*scores_SWV.shape[:2], -1, BLOCK).amax(-1)
    if whole < vocabulary:
        most_SWB = torch.cat((most_SWB, scores_SWV[..., whole:].amax(-1, keepdim=True)), -1)
    blocks, flat_SB = most_SWB.shape[-1], (most_SWB + added_SW.unsqueeze(-1)).flatten(1)
    best_SC = flat_SB.topk(min(count, flat_SB.shape[-1])).indices
    row_SC, first_SC = best_SC // blocks, best_SC % blocks * BLOCK
    token_SCL = first_SC.unsqueeze(-1) + torch.arange(BLOCK, device=best_SC.device)
    index_SCL = row_SC.unsqueeze(-1) * vocabulary + token_SCL.clamp(max=vocabulary - 1)
    found_SCL = scores_SWV.flatten(1).gather(1, index_SCL.flatten(1)).view(index_SCL.shape)
    sums_SCL = found_SCL + added_SW.gather(1, row_SC).unsqueeze(-1)
    value_SK, at_SK = sums_SCL.masked_fill(token_SCL >= vocabulary, NEG_INF).flatten(1).topk(count)
    return value_SK, index_SCL.flatten(1).gather(1, at_SK)


class LogitsProcessors:
    """Takes away, in place, what may not be said: transformers' logits processors, in their order."""

    def __init__(self, settings: GenerationConfig, rules: ModelGenerationConfig) -> None:
        self._penalty, self._eos = settings.repetition_penalty, rules.eos_token_id
        self._ngram = (
            rules.no_repeat_ngram_size if settings.no_repeat_ngram_size is None else settings.no_repeat_ngram_size
        )

    def __call__(self, slots: BatchState, scores_SWV: Tensor) -> Tensor:
        """Change scores and give them back."""
        if self._penalty != 1.0:
            self._penalise(slots, scores_SWV)
        if self._ngram > 0:
            self._forbid_ngrams(slots, scores_SWV)
        too_short_S1 = (slots.length_S < slots.min_length_S)[:, None]
        scores_SWV[..., self._eos] = scores_SWV[..., self._eos].masked_fill(too_short_S1, NEG_INF)
        return scores_SWV

    def _penalise(self, slots: BatchState, scores_SWV: Tensor) -> None:
        """Make what was said less likely; the start token counts as said."""
        said_SWT = torch.where(_is_generated(slots), slots.tokens_SWT, slots.tokens_SWT[..., :1])
        found_SWT = scores_SWV.gather(-1, said_SWT)
        found_SWT = torch.where(found_SWT < 0, found_SWT * self._penalty, found_SWT / self._penalty)
        scores_SWV.scatter_(-1, said_SWT, found_SWT)

    def _forbid_ngrams(self, slots: BatchState, scores_SWV: Tensor) -> None:
        """Forbid each token that would make some n tokens in a row come twice."""
        size, tokens_SWT = self._ngram, slots.tokens_SWT
        if tokens_SWT.shape[-1] < size:
            return
        behind = torch.arange(2 - size, 1, device=tokens_SWT.device)
        ending = (slots.last_positions()[:, None] + behind).clamp(min=0)[:, None].expand(-1, tokens_SWT.shape[1], -1)
        windows = tokens_SWT.unfold(-1, size, 1)
        repeats = (windows[..., :-1] == tokens_SWT.gather(-1, ending).unsqueeze(2)).all(-1)
        repeats &= _is_generated(slots)[..., size - 1 :] & (slots.no_repeat_ngram_size_S > 0).view(-1, 1, 1)
        last = windows[..., -1]
        values = scores_SWV.gather(-1, last).masked_fill(repeats, NEG_INF)
        scores_SWV.scatter_reduce_(-1, last, values, "amin")


def forced_tokens(slots: BatchState, rules: ModelGenerationConfig) -> list[tuple[Tensor, int]]:
    """Say in which slots the next token is not the model's to choose: bos at first, eos at the longest length."""
    found = []
    if rules.forced_bos_token_id is not None:
        found.append((slots.length_S == 1, rules.forced_bos_token_id))
    if rules.forced_eos_token_id is not None:
        found.append((slots.length_S == slots.max_length_S - 1, rules.forced_eos_token_id))
    return found


def warp(scores_SWV: Tensor, settings: GenerationConfig, least: int) -> Tensor:
    """Shape the odds before drawing: temperature, then the `top_k` likeliest, then the `top_p` nucleus."""
    if settings.temperature != 1.0:
        scores_SWV = scores_SWV / settings.temperature
    if settings.top_k:
        count = min(max(settings.top_k, least), scores_SWV.shape[-1])
        smallest = scores_SWV.topk(count).values[..., -1:]
        scores_SWV = scores_SWV.masked_fill(scores_SWV < smallest, NEG_INF)
    if settings.top_p < 1.0:
        ranked, index = scores_SWV.sort(descending=False)
        is_tail = ranked.softmax(-1).cumsum(-1) <= 1 - settings.top_p
        is_tail[..., -least:] = False
        scores_SWV = scores_SWV.masked_fill(is_tail.scatter(-1, index, is_tail), NEG_INF)
    return scores_SWV


def gumbel_sample(slots: BatchState, scores_SWV: Tensor) -> Tensor:
    """Add Gumbel noise: the largest sum is then a draw by softmax, the k largest a draw without replacement.

    The noise is a hash of the slot's seed, the position, the row and the token: no state, no order of draws, and so
    the same for a picture whatever else is being answered.
    """
    _, rows, vocabulary = scores_SWV.shape
    device = scores_SWV.device
    row_W1 = torch.arange(rows, device=device)[:, None]
    token_WV = row_W1 * vocabulary + torch.arange(vocabulary, device=device)
    stream_S11 = _mix(slots.seed_S * 1_000_003 + slots.length_S).view(-1, 1, 1)
    bits_SWV = _mix(stream_S11 + token_WV) & 0x7FFFFF
    uniform_SWV = (bits_SWV.float() + 0.5) / 2**23
    return scores_SWV - (-uniform_SWV.log()).log()


def _mix(numbers: Tensor) -> Tensor:
    """Hash 64-bit numbers (splitmix64's finisher, on signed numbers that wrap)."""
    numbers = numbers + -7046029254386353131
    numbers = (numbers ^ (numbers >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    numbers = (numbers ^ (numbers >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return numbers ^ (numbers >> 31 & 0x1FFFFFFFF)


def _is_generated(slots: BatchState) -> Tensor:
    """Tell for each place in the table whether a token has been said there: (S, 1, T)."""
    places_T = torch.arange(slots.tokens_SWT.shape[-1], device=slots.length_S.device)
    return (places_T < slots.length_S[:, None])[:, None]
