from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence2.training.dataset.sampler import WeightedSampler, num_draws


def epoch_indices(sampler: WeightedSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return [draw.sample_index for draw in sampler]


def test_each_epoch_draws_every_sample_once_in_another_order() -> None:
    sampler = WeightedSampler(50, seed=1)
    first = list(sampler)
    sampler.set_epoch(3)
    later = list(sampler)
    assert sorted(draw.sample_index for draw in first) == sorted(draw.sample_index for draw in later) == list(range(50))
    assert [draw.sample_index for draw in first] != [draw.sample_index for draw in later]
    assert [draw.global_index for draw in later] == list(range(150, 200))
    assert {draw.epoch for draw in later} == {3}
    assert [draw.sample_index for draw in WeightedSampler(50, seed=2)] != [draw.sample_index for draw in first]


def test_grouping_by_length_fills_batches_with_similar_lengths() -> None:
    lengths = [n % 10 for n in range(100)]
    sampler = WeightedSampler(100, seed=0, lengths=lengths, batch_size=5)
    indices = [draw.sample_index for draw in sampler]
    assert sorted(indices) == list(range(100))
    batches = [[lengths[i] for i in indices[start : start + 5]] for start in range(0, 100, 5)]
    assert max(max(batch) - min(batch) for batch in batches) == 0
    assert [lengths[i] for i in indices] != sorted(lengths)


@given(st.lists(st.floats(0, 4), min_size=1, max_size=30), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_every_epoch_has_one_length_and_follows_the_weights(weights: list[float], epoch: int) -> None:
    sampler = WeightedSampler(len(weights), seed=1, weights=weights)
    indices = epoch_indices(sampler, epoch)
    assert len(indices) == len(sampler) == num_draws(weights)
    assert abs(len(sampler) - sum(weights)) <= 0.5 + 1e-6
    for index, count in Counter(indices).items():
        assert int(weights[index]) <= count <= int(weights[index]) + 2


def test_fractional_weights_are_exact_on_average() -> None:
    weights = [2.0] * 10 + [0.25] * 20 + [1.5] * 8
    sampler = WeightedSampler(len(weights), seed=0, weights=weights)
    assert len(sampler) == 20 + 5 + 12
    counts = Counter(index for epoch in range(400) for index in epoch_indices(sampler, epoch))
    for index, weight in enumerate(weights):
        assert counts[index] / 400 == pytest.approx(weight, abs=0.1)
    assert all(counts[index] == 800 for index in range(10))  # integer weights are not random
    rare = [frozenset(i for i in epoch_indices(sampler, epoch) if 10 <= i < 30) for epoch in range(50)]
    assert len(set(rare)) > 45


def test_weighted_draws_have_a_global_index_and_count_repeats() -> None:
    sampler = WeightedSampler(3, seed=0, weights=[2, 1, 1])
    sampler.set_epoch(5)
    draws = list(sampler)
    assert [draw.global_index for draw in draws] == [20, 21, 22, 23]
    assert sorted((draw.sample_index, draw.repeat) for draw in draws) == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert draws == list(sampler)


def test_weights_combine_with_grouping_by_length() -> None:
    sampler = WeightedSampler(4, seed=0, lengths=[1, 9, 1, 9], batch_size=2, weights=[3, 1, 1, 3])
    indices = epoch_indices(sampler, 0)
    assert Counter(indices) == {0: 3, 1: 1, 2: 1, 3: 3}
    assert all(len({index % 2 for index in indices[start : start + 2]}) == 1 for start in range(0, 8, 2))
