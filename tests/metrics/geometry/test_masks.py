import math

import pytest

from florence2.metrics.geometry.masks import mask_metrics, mask_overlap, quad_ious, quad_metrics
from florence2.model.answer import AnswerItem


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def lines(*rows):
    return [AnswerItem.quad(quad, text) for quad, text in rows]


def mask(*polygons):
    return [AnswerItem.mask(polygons)] if polygons else []


@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
def test_mask_overlap_is_independent_of_scale(scale):
    intersection, union = mask_overlap([square(0, 0, 2 * scale)], [square(scale, 0, 2 * scale)])
    assert intersection == pytest.approx(2 * scale**2, rel=0.01)
    assert union == pytest.approx(6 * scale**2, rel=0.01)


def test_mask_is_union_of_its_polygons():
    intersection, union = mask_overlap([square(0, 0, 10), square(0, 0, 10), square(20, 0, 10)], [square(0, 0, 10)])
    assert (intersection, union) == (pytest.approx(100, rel=0.02), pytest.approx(200, rel=0.02))


def test_mask_metrics_of_hand_made_masks():
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


def test_quad_iou_uses_quad_and_not_its_bounding_box():
    slanted = [0, 10, 10, 0, 20, 10, 10, 20]
    assert quad_ious([slanted], [square(0, 0, 20)])[0, 0] == pytest.approx(0.5, abs=0.01)
    assert quad_ious([slanted], [square(100, 0, 20)])[0, 0] == 0


def test_quad_metrics_of_hand_made_lines():
    predictions = lines((square(0, 0, 10), "exit"), (square(50, 0, 10), "STOB"), (square(90, 90, 5), "made up"))
    references = lines((square(1, 0, 10), "EXIT "), (square(50, 0, 10), "STOP"), (square(20, 50, 5), "missed"))
    found = quad_metrics([(predictions, references)]).values()
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["end_to_end_f1"] == pytest.approx(1 / 3)
    assert found["text_similarity"] == pytest.approx((0 + 3 / 4 + 0 + 0) / 4)  # `text_similarity` is case-sensitive


def test_quad_metrics_without_lines_are_nan():
    scores = quad_metrics([(lines(), lines())])
    assert all(math.isnan(value) for value in scores.values().values())
    assert scores.quality_E.tolist() == [1]
