import numpy as np
import pytest

from florence2.metrics.bootstrap import MetricValues, confidence_intervals, difference, mean, ratio


def metric_values(values):
    return MetricValues({"mean": mean(values)}, np.asarray(values, dtype=float))


def test_interval_of_mean_equals_normal_approximation():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    found = confidence_intervals(metric_values(values), np.arange(400), 2000)["mean"]
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_resample_draws_image_with_all_its_examples():
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 50), 8)
    alone = confidence_intervals(metric_values(values), np.arange(400), 500)["mean"]
    together = confidence_intervals(metric_values(values), np.repeat(np.arange(50), 8), 500)["mean"]
    assert (together.high - together.low) > 2 * (alone.high - alone.low)


def test_interval_is_deterministic():
    values = [0.0, 1, 1, 0, 1]
    assert confidence_intervals(metric_values(values), np.arange(5), 200) == confidence_intervals(
        metric_values(values), np.arange(5), 200
    )


@pytest.mark.parametrize(
    ("images", "num_resamples"), [([0, 0, 0], 100), ([0, 1, 2], 0)], ids=["one image", "no resamples"]
)
def test_one_image_or_no_resamples_give_no_interval(images, num_resamples):
    found = confidence_intervals(metric_values([0.0, 1, 1]), np.array(images), num_resamples)["mean"]
    assert (found.value, found.low, found.high) == (pytest.approx(2 / 3), None, None)


def test_zero_denominator_gives_none():
    found = confidence_intervals(MetricValues({"r": ratio([1, 2], [0, 0])}, np.zeros(2)), np.arange(2), 100)["r"]
    assert (found.value, found.low, found.high) == (None, None, None)


def test_difference_uses_same_resamples_on_both_sides():
    noise = np.random.default_rng(2).normal(0, 1, 200)
    old, new = metric_values(noise), metric_values(noise + 0.1)
    found = difference(old, new, np.arange(200), 500)["mean"]
    assert (found.value, found.low, found.high) == (
        pytest.approx(0.1),
    ) * 3  # each side alone has an interval of 0.14 on either end
    assert found.p == 0


def test_equal_scores_have_p_of_one():
    same = metric_values([0.0, 1, 0.5])
    found = difference(same, same, np.arange(3), 100)["mean"]
    assert (found.value, found.p) == (0, 1)
