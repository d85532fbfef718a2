import math

import pytest

from florence2.metrics.geometry.masks import mask_iou, mask_metrics, quad_ious, quad_metrics
from florence2.metrics.geometry.matching import Instances


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def lines(*rows):
    return Instances([place for place, _ in rows], [text for _, text in rows], [1.0] * len(rows))


def mask(*runs):
    return Instances([list(runs)] if runs else [], [""] * bool(runs), [1.0] * bool(runs))


@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
def test_overlap_of_squares_at_any_size(scale):
    both, either = mask_iou([square(0, 0, 2 * scale)], [square(scale, 0, 2 * scale)])
    assert both == pytest.approx(2 * scale**2, rel=0.01)
    assert either == pytest.approx(6 * scale**2, rel=0.01)


def test_a_mask_is_the_union_of_its_polygons():
    both, either = mask_iou([square(0, 0, 10), square(0, 0, 10), square(20, 0, 10)], [square(0, 0, 10)])
    assert (both, either) == (pytest.approx(100, rel=0.02), pytest.approx(200, rel=0.02))


def test_masks():
    pairs = [
        (mask(square(0, 0, 10)), mask(square(0, 0, 10))),
        (mask(square(0, 0, 10)), mask(square(0, 0, 20))),
        (mask(), mask(square(0, 0, 10))),
        (mask(), mask()),
    ]
    found = mask_metrics(pairs).values()
    assert found["miou"] == pytest.approx((1 + 0.25 + 0 + 1) / 4, abs=0.005)
    assert found["overall_iou"] == pytest.approx(200 / 600, abs=0.005)
    assert found["precision_at_50"] == 0.5
    assert math.isnan(mask_metrics([(mask(), mask())]).values()["overall_iou"])


def test_a_slanted_quad_is_not_its_box():
    slanted = [0, 10, 10, 0, 20, 10, 10, 20]
    assert quad_ious([slanted], [square(0, 0, 20)])[0, 0] == pytest.approx(0.5, abs=0.01)
    assert quad_ious([slanted], [square(100, 0, 20)])[0, 0] == 0


def test_lines_of_text():
    said = lines((square(0, 0, 10), "exit"), (square(50, 0, 10), "STOB"), (square(90, 90, 5), "made up"))
    wanted = lines((square(1, 0, 10), "EXIT "), (square(50, 0, 10), "STOP"), (square(20, 50, 5), "missed"))
    found = quad_metrics([(said, wanted)]).values()
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["end_to_end_f1"] == pytest.approx(1 / 3)
    assert found["text_similarity"] == pytest.approx((0 + 3 / 4 + 0 + 0) / 4)  # case counts here


def test_no_lines_at_all():
    scores = quad_metrics([(lines(), lines())])
    assert all(math.isnan(value) for value in scores.values().values())
    assert scores.quality_Q.tolist() == [1]
