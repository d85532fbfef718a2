import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as theirs

from florence2.engine.decoding.batch_state import BatchState
from florence2.engine.decoding.logits_processors import BLOCK, LogitsProcessors, blocked_topk, gumbel_sample, warp
from florence2.engine.decoding.search import create_search
from florence2.engine.generation_config import GenerationConfig, LengthLimits, ModelGenerationConfig

RULES = ModelGenerationConfig(
    decoder_start_token_id=2,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=1,
    forced_bos_token_id=0,
    forced_eos_token_id=2,
    no_repeat_ngram_size=3,
    max_positions=64,
)
VOCABULARY = 11


def said(rows: list[list[int]], seeds: list[int] | None = None) -> BatchState:
    """Make a table where each slot has one row that said so much."""
    slots = BatchState.empty(len(rows), 1, 12, torch.device("cpu"))
    for number, row in enumerate(rows):
        slots.start(
            [number],
            [LengthLimits(min_length=5, max_length=12, no_repeat_ngram_size=3)],
            [(seeds or [0] * 99)[number]],
            [0],
            RULES,
        )
        slots.tokens_SWT[number, 0, : len(row)] = torch.tensor(row)
        slots.length_S[number] = len(row)
    return slots


ROWS = [[2, 0, 5, 6, 7, 5, 6], [2, 0, 5, 5, 5, 5], [2, 0, 4, 4], [2, 0, 2, 0, 2, 0, 2], [2]]


@pytest.mark.parametrize("ngram", [1, 2, 3, 4])
def test_what_is_forbidden_is_what_transformers_forbids(ngram: int):
    scores = torch.randn(len(ROWS), 1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    settings = GenerationConfig(repetition_penalty=1.5, no_repeat_ngram_size=ngram)
    found = LogitsProcessors(settings, RULES)(said(ROWS), scores.clone())
    wanted = LogitsProcessorList(
        [
            theirs.RepetitionPenaltyLogitsProcessor(1.5),
            theirs.NoRepeatNGramLogitsProcessor(ngram),
            theirs.MinLengthLogitsProcessor(5, 2),
        ]
    )
    for row, got, before in zip(ROWS, found, scores, strict=True):
        assert torch.equal(got, wanted(torch.tensor([row]), before.clone()))


@pytest.mark.parametrize("least", [1, 2])
def test_odds_are_shaped_as_in_transformers(least: int):
    scores = torch.randn(6, 1, 40, generator=torch.Generator().manual_seed(0)) * 3
    settings = GenerationConfig(do_sample=True, temperature=0.7, top_k=9, top_p=0.8)
    wanted = LogitsProcessorList(
        [
            theirs.TemperatureLogitsWarper(0.7),
            theirs.TopKLogitsWarper(9, min_tokens_to_keep=least),
            theirs.TopPLogitsWarper(0.8, min_tokens_to_keep=least),
        ]
    )
    assert torch.equal(warp(scores, settings, least)[:, 0], wanted(torch.empty(6, 0), scores[:, 0].clone()))


def test_draws_follow_the_odds():
    count = 4000
    slots = said([[2, 0]] * count, seeds=list(range(count)))
    odds = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    drawn = gumbel_sample(slots, odds.log().expand(count, 1, 5)).argmax(-1).flatten()
    found = torch.bincount(drawn, minlength=5) / count
    assert torch.allclose(found, odds, atol=0.03)  # four standard deviations


def test_draws_differ_by_place_and_row_and_agree_by_seed():
    same = torch.zeros(2, 3, 1000)
    short, long = (BatchState.empty(2, 3, 12, torch.device("cpu")) for _ in range(2))
    for slots, length in ((short, 3), (long, 4)):
        slots.seed_S[:] = 7
        slots.length_S[:] = length
    first, other = gumbel_sample(short, same).argmax(-1), gumbel_sample(long, same).argmax(-1)
    assert torch.equal(first[0], first[1])
    assert len(set(first[0].tolist())) == 3
    assert not torch.equal(first, other)


def test_exact_ties_fall_as_in_transformers():
    slots = BatchState.empty(1, 3, 12, torch.device("cpu"))
    slots.start([0], [LengthLimits(min_length=0, max_length=12, no_repeat_ngram_size=0)], [0], [0], RULES)
    slots.length_S[:] = 4
    slots.scores_SW[:] = torch.tensor([-1.0, -1.0, -1.0])
    logits = torch.zeros(1, 3, 2000)
    choice = create_search(GenerationConfig(num_beams=3), RULES).choose(slots, logits.clone())
    index = (logits.log_softmax(-1) - 1.0).flatten(1).topk(6).indices
    assert torch.equal(choice.token_SK, index % 2000)
    assert torch.equal(choice.parent_SK, index // 2000)


@pytest.mark.parametrize("vocabulary", [BLOCK - 1, BLOCK, 2 * BLOCK + 1, 1001])
def test_the_largest_by_blocks_are_the_largest(vocabulary: int):
    chance = torch.Generator().manual_seed(vocabulary)
    scores, added = torch.randn(4, 3, vocabulary, generator=chance), torch.randn(4, 3, generator=chance)
    scores[0, :, 5:] = -float("inf")  # hardly anything is allowed
    scores[1, 2, -1] = 9.0
    value, index = blocked_topk(scores, added, 6)
    wanted = (scores + added.unsqueeze(-1)).flatten(1)
    assert torch.equal(value, wanted.topk(6).values)
    assert torch.equal(wanted.gather(1, index), value)
    assert index[1, 0] == 3 * vocabulary - 1
