import numpy as np
import pytest

from florence2.metrics.bootstrap import MetricValues, confidence_intervals, difference, mean, ratio


def scores(values):
    return MetricValues({"mean": mean(values)}, np.asarray(values, dtype=float))


def test_an_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    found = confidence_intervals(scores(values), np.arange(400), 2000)["mean"]
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_questions_about_one_image_are_drawn_together():
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 50), 8)
    alone = confidence_intervals(scores(values), np.arange(400), 500)["mean"]
    together = confidence_intervals(scores(values), np.repeat(np.arange(50), 8), 500)["mean"]
    assert (together.high - together.low) > 2 * (alone.high - alone.low)


def test_the_same_question_gives_the_same_interval():
    values = [0.0, 1, 1, 0, 1]
    assert confidence_intervals(scores(values), np.arange(5), 200) == confidence_intervals(
        scores(values), np.arange(5), 200
    )


@pytest.mark.parametrize(("images", "times"), [([0, 0, 0], 100), ([0, 1, 2], 0)], ids=["one picture", "no draws"])
def test_some_scores_have_no_interval(images, times):
    found = confidence_intervals(scores([0.0, 1, 1]), np.array(images), times)["mean"]
    assert (found.value, found.low, found.high) == (pytest.approx(2 / 3), None, None)


def test_nothing_to_divide_by_is_none():
    found = confidence_intervals(MetricValues({"r": ratio([1, 2], [0, 0])}, np.zeros(2)), np.arange(2), 100)["r"]
    assert (found.value, found.low, found.high) == (None, None, None)


def test_a_change_is_measured_on_the_same_drawings():
    noise = np.random.default_rng(2).normal(0, 1, 200)
    old, new = scores(noise), scores(noise + 0.1)
    found = difference(old, new, np.arange(200), 500)["mean"]
    assert (found.value, found.low, found.high) == (pytest.approx(0.1),) * 3  # alone, each is unsure by 0.14
    assert found.p == 0


def test_no_change_has_no_evidence():
    same = scores([0.0, 1, 0.5])
    found = difference(same, same, np.arange(3), 100)["mean"]
    assert (found.value, found.p) == (0, 1)
