import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as theirs

from florence2.engine.decoding.batch_state import BatchState
from florence2.engine.decoding.location_mass import LocationMass
from florence2.engine.decoding.logits_processors import BLOCK, LogitsProcessors, blocked_topk, gumbel_sample, warp
from florence2.engine.decoding.search import create_search
from florence2.engine.generation_config import GenerationConfig, LengthLimits, ModelGenerationConfig

CONFIG = ModelGenerationConfig(
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


def state_of(rows: list[list[int]], seeds: list[int] | None = None) -> BatchState:
    """Make a state where each slot has one row with these tokens."""
    state = BatchState.empty(len(rows), 1, 12, torch.device("cpu"))
    for number, row in enumerate(rows):
        state.start(
            [number],
            [LengthLimits(min_length=5, max_length=12, no_repeat_ngram_size=3)],
            [(seeds or [0] * 99)[number]],
            [0],
            CONFIG,
        )
        state.tokens_SWT[number, 0, : len(row)] = torch.tensor(row)
        state.length_S[number] = len(row)
    return state


ROWS = [[2, 0, 5, 6, 7, 5, 6], [2, 0, 5, 5, 5, 5], [2, 0, 4, 4], [2, 0, 2, 0, 2, 0, 2], [2]]


@pytest.mark.parametrize("ngram", [1, 2, 3, 4])
def test_logits_processors_equal_transformers(ngram: int):
    scores = torch.randn(len(ROWS), 1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    generation = GenerationConfig(repetition_penalty=1.5, no_repeat_ngram_size=ngram)
    result = LogitsProcessors(generation, CONFIG)(state_of(ROWS), scores.clone())
    expected = LogitsProcessorList(
        [
            theirs.RepetitionPenaltyLogitsProcessor(1.5),
            theirs.NoRepeatNGramLogitsProcessor(ngram),
            theirs.MinLengthLogitsProcessor(5, 2),
        ]
    )
    for row, got, before in zip(ROWS, result, scores, strict=True):
        assert torch.equal(got, expected(torch.tensor([row]), before.clone()))


@pytest.mark.parametrize("min_tokens", [1, 2])
def test_warp_equals_transformers(min_tokens: int):
    scores = torch.randn(6, 1, 40, generator=torch.Generator().manual_seed(0)) * 3
    generation = GenerationConfig(do_sample=True, temperature=0.7, top_k=9, top_p=0.8)
    expected = LogitsProcessorList(
        [
            theirs.TemperatureLogitsWarper(0.7),
            theirs.TopKLogitsWarper(9, min_tokens_to_keep=min_tokens),
            theirs.TopPLogitsWarper(0.8, min_tokens_to_keep=min_tokens),
        ]
    )
    assert torch.equal(warp(scores, generation, min_tokens)[:, 0], expected(torch.empty(6, 0), scores[:, 0].clone()))


def test_gumbel_samples_follow_the_probabilities():
    count = 4000
    state = state_of([[2, 0]] * count, seeds=list(range(count)))
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    samples = gumbel_sample(state, probabilities.log().expand(count, 1, 5)).argmax(-1).flatten()
    frequency = torch.bincount(samples, minlength=5) / count
    assert torch.allclose(frequency, probabilities, atol=0.03)  # four standard deviations


def test_gumbel_noise_depends_on_seed_position_and_row_alone():
    same = torch.zeros(2, 3, 1000)
    short, long = (BatchState.empty(2, 3, 12, torch.device("cpu")) for _ in range(2))
    for state, length in ((short, 3), (long, 4)):
        state.seed_S[:] = 7
        state.length_S[:] = length
    first, other = gumbel_sample(short, same).argmax(-1), gumbel_sample(long, same).argmax(-1)
    assert torch.equal(first[0], first[1])
    assert len(set(first[0].tolist())) == 3
    assert not torch.equal(first, other)


def test_beam_search_breaks_ties_like_topk():
    state = BatchState.empty(1, 3, 12, torch.device("cpu"))
    state.start([0], [LengthLimits(min_length=0, max_length=12, no_repeat_ngram_size=0)], [0], [0], CONFIG)
    state.length_S[:] = 4
    state.scores_SW[:] = torch.tensor([-1.0, -1.0, -1.0])
    logits = torch.zeros(1, 3, 2000)
    step = create_search(GenerationConfig(num_beams=3), CONFIG, LocationMass(range(1000))).choose(state, logits.clone())
    index = (logits.log_softmax(-1) - 1.0).flatten(1).topk(6).indices
    assert torch.equal(step.token_SK, index % 2000)
    assert torch.equal(step.parent_SK, index // 2000)


@pytest.mark.parametrize("vocabulary", [BLOCK - 1, BLOCK, 2 * BLOCK + 1, 1001])
def test_blocked_topk_equals_topk(vocabulary: int):
    chance = torch.Generator().manual_seed(vocabulary)
    scores, added = torch.randn(4, 3, vocabulary, generator=chance), torch.randn(4, 3, generator=chance)
    scores[0, :, 5:] = -float("inf")  # hardly anything is allowed
    scores[1, 2, -1] = 9.0
    value, index = blocked_topk(scores, added, 6)
    expected = (scores + added.unsqueeze(-1)).flatten(1)
    assert torch.equal(value, expected.topk(6).values)
    assert torch.equal(expected.gather(1, index), value)
    assert index[1, 0] == 3 * vocabulary - 1
