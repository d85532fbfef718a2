from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence2.training.dataset.sampler import WeightedSampler, num_draws


def of(order: WeightedSampler, epoch: int) -> list[int]:
    order.set_epoch(epoch)
    return [draw.sample_index for draw in order]


@given(st.lists(st.floats(0, 4), min_size=1, max_size=30), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_every_epoch_has_the_same_length_and_gives_each_its_weight(weights: list[float], epoch: int) -> None:
    order = WeightedSampler(len(weights), seed=1, weights=weights)
    which = of(order, epoch)
    assert len(which) == len(order) == num_draws(weights)
    assert abs(len(order) - sum(weights)) <= 0.5 + 1e-6
    for index, times in Counter(which).items():
        assert int(weights[index]) <= times <= int(weights[index]) + 2


def test_fractions_come_out_right_over_epochs() -> None:
    weights = [2.0] * 10 + [0.25] * 20 + [1.5] * 8
    order = WeightedSampler(len(weights), seed=0, weights=weights)
    assert len(order) == 20 + 5 + 12
    seen = Counter(index for epoch in range(400) for index in of(order, epoch))
    for index, weight in enumerate(weights):
        assert seen[index] / 400 == pytest.approx(weight, abs=0.1)
    assert all(seen[index] == 800 for index in range(10))  # whole weights are no matter of chance
    rare = [frozenset(index for index in of(order, epoch) if 10 <= index < 30) for epoch in range(50)]
    assert len(set(rare)) > 45


def test_weighted_draws_count_on_and_know_their_repeats() -> None:
    order = WeightedSampler(3, seed=0, weights=[2, 1, 1])
    order.set_epoch(5)
    draws = list(order)
    assert [draw.global_index for draw in draws] == [20, 21, 22, 23]
    assert sorted((draw.sample_index, draw.repeat) for draw in draws) == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert draws == list(order)


def test_weights_go_with_like_lengths() -> None:
    order = WeightedSampler(4, seed=0, lengths=[1, 9, 1, 9], batch=2, weights=[3, 1, 1, 3])
    which = of(order, 0)
    assert Counter(which) == {0: 3, 1: 1, 2: 1, 3: 3}
    assert all(len({index % 2 for index in which[at : at + 2]}) == 1 for at in range(0, 8, 2))
