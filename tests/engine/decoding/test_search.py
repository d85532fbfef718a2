import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as theirs

from florence2.engine.decoding.batch_state import Slots
from florence2.engine.decoding.logits_processors import BLOCK, Allow, draw, largest, warp
from florence2.engine.decoding.search import search_for
from florence2.engine.engine_config import GenerationSettings, Limits, Rules

RULES = Rules(start=2, bos=0, eos=2, pad=1, forced_bos=0, forced_eos=2, ngram=3, positions=64)
VOCABULARY = 11


def said(rows: list[list[int]], seeds: list[int] | None = None) -> Slots:
    """Make a table where each slot has one row that said so much."""
    slots = Slots.empty(len(rows), 1, 12, torch.device("cpu"))
    for number, row in enumerate(rows):
        slots.take([number], [Limits(least=5, most=12, ngram=3)], RULES, [(seeds or [0] * 99)[number]])
        slots.tokens_SWT[number, 0, : len(row)] = torch.tensor(row)
        slots.length_S[number] = len(row)
    return slots


ROWS = [[2, 0, 5, 6, 7, 5, 6], [2, 0, 5, 5, 5, 5], [2, 0, 4, 4], [2, 0, 2, 0, 2, 0, 2], [2]]


@pytest.mark.parametrize("ngram", [1, 2, 3, 4])
def test_what_is_forbidden_is_what_transformers_forbids(ngram: int):
    scores = torch.randn(len(ROWS), 1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    settings = GenerationSettings(repetition_penalty=1.5, no_repeat_ngram_size=ngram)
    found = Allow(settings, RULES)(said(ROWS), scores.clone())
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
    settings = GenerationSettings(do_sample=True, temperature=0.7, top_k=9, top_p=0.8)
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
    drawn = draw(slots, odds.log().expand(count, 1, 5)).argmax(-1).flatten()
    found = torch.bincount(drawn, minlength=5) / count
    assert torch.allclose(found, odds, atol=0.03)  # four standard deviations


def test_draws_differ_by_place_and_row_and_agree_by_seed():
    same = torch.zeros(2, 3, 1000)
    short, long = (Slots.empty(2, 3, 12, torch.device("cpu")) for _ in range(2))
    for slots, length in ((short, 3), (long, 4)):
        slots.seed_S[:] = 7
        slots.length_S[:] = length
    first, other = draw(short, same).argmax(-1), draw(long, same).argmax(-1)
    assert torch.equal(first[0], first[1])
    assert len(set(first[0].tolist())) == 3
    assert not torch.equal(first, other)


def test_exact_ties_fall_as_in_transformers():
    slots = Slots.empty(1, 3, 12, torch.device("cpu"))
    slots.take([0], [Limits(least=0, most=12, ngram=0)], RULES, [0])
    slots.length_S[:] = 4
    slots.scores_SW[:] = torch.tensor([-1.0, -1.0, -1.0])
    logits = torch.zeros(1, 3, 2000)
    choice = search_for(GenerationSettings(num_beams=3), RULES).choose(slots, logits.clone())
    index = (logits.log_softmax(-1) - 1.0).flatten(1).topk(6).indices
    assert torch.equal(choice.token_SK, index % 2000)
    assert torch.equal(choice.parent_SK, index // 2000)


@pytest.mark.parametrize("vocabulary", [BLOCK - 1, BLOCK, 2 * BLOCK + 1, 1001])
def test_the_largest_by_blocks_are_the_largest(vocabulary: int):
    chance = torch.Generator().manual_seed(vocabulary)
    scores, added = torch.randn(4, 3, vocabulary, generator=chance), torch.randn(4, 3, generator=chance)
    scores[0, :, 5:] = -float("inf")  # hardly anything is allowed
    scores[1, 2, -1] = 9.0
    value, index = largest(scores, added, 6)
    wanted = (scores + added.unsqueeze(-1)).flatten(1)
    assert torch.equal(value, wanted.topk(6).values)
    assert torch.equal(wanted.gather(1, index), value)
    assert index[1, 0] == 3 * vocabulary - 1
