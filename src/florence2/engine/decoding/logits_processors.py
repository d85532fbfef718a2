"""Logits processors and sampling: which tokens are forbidden or forced, logits warpers, Gumbel noise, top-k by blocks.

All of it runs on the device, and the host does not wait for it.

Shapes: S slots, W rows of a slot, K candidates of a step, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florence2.engine.decoding.batch_state import BatchState
from florence2.engine.generation_config import GenerationConfig, ModelGenerationConfig

NEG_INF = -float("inf")
BLOCK = 128  # tokens of a block in `blocked_topk`


def blocked_topk(scores_SWV: Tensor, added_SW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest sums of a slot and their indices among its W x V, as `topk` does.

    A GPU's `topk` reads all values several times. The largest values are in the blocks with the largest maxima, so
    this reads all values once, and then C blocks of L tokens. Ties may fall in another order.
    """
    vocabulary = scores_SWV.shape[-1]
    in_blocks = vocabulary // BLOCK * BLOCK
    max_SWB = scores_SWV[..., :in_blocks].view(*scores_SWV.shape[:2], -1, BLOCK).amax(-1)
    if in_blocks < vocabulary:
        max_SWB = torch.cat((max_SWB, scores_SWV[..., in_blocks:].amax(-1, keepdim=True)), -1)
    blocks, flat_SB = max_SWB.shape[-1], (max_SWB + added_SW.unsqueeze(-1)).flatten(1)
    best_SC = flat_SB.topk(min(count, flat_SB.shape[-1])).indices
    row_SC, first_SC = best_SC // blocks, best_SC % blocks * BLOCK
    token_SCL = first_SC.unsqueeze(-1) + torch.arange(BLOCK, device=best_SC.device)
    index_SCL = row_SC.unsqueeze(-1) * vocabulary + token_SCL.clamp(max=vocabulary - 1)
    score_SCL = scores_SWV.flatten(1).gather(1, index_SCL.flatten(1)).view(index_SCL.shape)
    sums_SCL = score_SCL + added_SW.gather(1, row_SC).unsqueeze(-1)
    value_SK, at_SK = sums_SCL.masked_fill(token_SCL >= vocabulary, NEG_INF).flatten(1).topk(count)
    return value_SK, index_SCL.flatten(1).gather(1, at_SK)


class LogitsProcessors:
    """Forbids tokens in place: transformers' logits processors, in their order."""

    def __init__(self, generation: GenerationConfig, model_config: ModelGenerationConfig) -> None:
        self._penalty, self._eos = generation.repetition_penalty, model_config.eos_token_id
        ngram = generation.no_repeat_ngram_size
        self._ngram = model_config.no_repeat_ngram_size if ngram is None else ngram

    def __call__(self, batch: BatchState, scores_SWV: Tensor) -> Tensor:
        """Change the scores, and return them."""
        if self._penalty != 1.0:
            self._penalize_repetition(batch, scores_SWV)
        if self._ngram > 0:
            self._forbid_ngrams(batch, scores_SWV)
        too_short_S1 = (batch.length_S < batch.min_length_S)[:, None]
        scores_SWV[..., self._eos] = scores_SWV[..., self._eos].masked_fill(too_short_S1, NEG_INF)
        return scores_SWV

    def _penalize_repetition(self, batch: BatchState, scores_SWV: Tensor) -> None:
        """Make generated tokens less likely; the start token counts as generated."""
        token_SWT = torch.where(_is_generated(batch), batch.tokens_SWT, batch.tokens_SWT[..., :1])
        score_SWT = scores_SWV.gather(-1, token_SWT)
        score_SWT = torch.where(score_SWT < 0, score_SWT * self._penalty, score_SWT / self._penalty)
        scores_SWV.scatter_(-1, token_SWT, score_SWT)

    def _forbid_ngrams(self, batch: BatchState, scores_SWV: Tensor) -> None:
        """Forbid each token that would complete an n-gram a second time."""
        size, tokens_SWT = self._ngram, batch.tokens_SWT
        if tokens_SWT.shape[-1] < size:
            return
        behind = torch.arange(2 - size, 1, device=tokens_SWT.device)
        ending = (batch.last_positions()[:, None] + behind).clamp(min=0)[:, None].expand(-1, tokens_SWT.shape[1], -1)
        windows = tokens_SWT.unfold(-1, size, 1)
        repeats = (windows[..., :-1] == tokens_SWT.gather(-1, ending).unsqueeze(2)).all(-1)
        repeats &= _is_generated(batch)[..., size - 1 :] & (batch.no_repeat_ngram_size_S > 0).view(-1, 1, 1)
        last = windows[..., -1]
        values = scores_SWV.gather(-1, last).masked_fill(repeats, NEG_INF)
        scores_SWV.scatter_reduce_(-1, last, values, "amin")


def forced_tokens(batch: BatchState, model_config: ModelGenerationConfig) -> list[tuple[Tensor, int]]:
    """List the forced tokens, with the slots where they are next: bos first, and eos at the maximal length."""
    forced = []
    if model_config.forced_bos_token_id is not None:
        forced.append((batch.length_S == 1, model_config.forced_bos_token_id))
    if model_config.forced_eos_token_id is not None:
        forced.append((batch.length_S == batch.max_length_S - 1, model_config.forced_eos_token_id))
    return forced


def warp(scores_SWV: Tensor, generation: GenerationConfig, min_tokens: int) -> Tensor:
    """Apply the logits warpers of sampling: temperature, top-k, then top-p; `min_tokens` remain possible."""
    if generation.temperature != 1.0:
        scores_SWV = scores_SWV / generation.temperature
    if generation.top_k:
        count = min(max(generation.top_k, min_tokens), scores_SWV.shape[-1])
        smallest = scores_SWV.topk(count).values[..., -1:]
        scores_SWV = scores_SWV.masked_fill(scores_SWV < smallest, NEG_INF)
    if generation.top_p < 1.0:
        ranked, index = scores_SWV.sort(descending=False)
        is_tail = ranked.softmax(-1).cumsum(-1) <= 1 - generation.top_p
        is_tail[..., -min_tokens:] = False
        scores_SWV = scores_SWV.masked_fill(is_tail.scatter(-1, index, is_tail), NEG_INF)
    return scores_SWV


def gumbel_sample(batch: BatchState, scores_SWV: Tensor) -> Tensor:
    """Add Gumbel noise: the largest sum is a sample of the softmax, the k largest a sample without replacement.

    The noise is a hash of the slot's seed, the position, the row and the token. It has no state, and so is the same
    for a sample whatever else runs in the batch.
    """
    _, rows, vocabulary = scores_SWV.shape
    device = scores_SWV.device
    row_W1 = torch.arange(rows, device=device)[:, None]
    token_WV = row_W1 * vocabulary + torch.arange(vocabulary, device=device)
    stream_S11 = _mix(batch.seed_S * 1_000_003 + batch.length_S).view(-1, 1, 1)
    bits_SWV = _mix(stream_S11 + token_WV) & 0x7FFFFF
    uniform_SWV = (bits_SWV.float() + 0.5) / 2**23
    return scores_SWV - (-uniform_SWV.log()).log()


def _mix(numbers: Tensor) -> Tensor:
    """Hash 64-bit numbers (splitmix64's finisher, on signed numbers that wrap)."""
    numbers = numbers + -7046029254386353131
    numbers = (numbers ^ (numbers >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    numbers = (numbers ^ (numbers >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return numbers ^ (numbers >> 31 & 0x1FFFFFFFF)


def _is_generated(batch: BatchState) -> Tensor:
    """Return for each position of the table whether a token was generated there: (S, 1, T)."""
    position_T = torch.arange(batch.tokens_SWT.shape[-1], device=batch.length_S.device)
    return (position_T < batch.length_S[:, None])[:, None]
