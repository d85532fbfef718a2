import math
from random import Random

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from florence2.metrics.geometry.detection import (
    dense_caption_metrics,
    detection_metrics,
    grounding_metrics,
    region_proposal_metrics,
)
from florence2.metrics.geometry.matching import IOU_THRESHOLDS, box_ious, match_greedily, rank
from florence2.model.answer import AnswerItem


def items(*rows):
    """Create objects from rows of (box, label) or (box, label, score)."""
    return [AnswerItem.box(*row) for row in rows]


def scenes(seed, count=15):
    """Random images: references of four labels; predictions partly near them, with tied scores."""
    random = Random(seed)
    for _ in range(count):
        references = [_box(random) for _ in range(random.randrange(6))]
        near = [_near(box, random) for box in references if random.random() < 0.8]
        far = [_box(random) for _ in range(random.randrange(4))]
        scores = [round(random.random(), 1) for _ in near + far]
        yield (
            items(*((*row, score) for row, score in zip(near + far, scores, strict=True))),
            items(*references),
        )


def _box(random):
    x, y = random.uniform(0, 80), random.uniform(0, 80)
    return [x, y, x + random.uniform(5, 60), y + random.uniform(5, 60)], random.choice("abcd")


def _near(row, random):
    (x1, y1, x2, y2), label = row
    moved = [x1 + random.gauss(0, 2), y1 + random.gauss(0, 2), x2 + random.gauss(0, 2), y2 + random.gauss(0, 2)]
    return moved, label if random.random() < 0.9 else "unknown"


def run_faster_coco_eval(pairs):
    """Score with faster-coco-eval alone."""
    names = sorted({item.label for _, references in pairs for item in references})
    rows = []
    for side in (0, 1):
        rows.append([])
        for image, pair in enumerate(pairs):
            for item in pair[side]:
                x1, y1, x2, y2 = item.coordinates
                if item.label in names:
                    row = {"image_id": image, "category_id": names.index(item.label) + 1}
                    row |= {"score": 1.0 if item.score is None else item.score}
                    rows[side].append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    for number, row in enumerate(rows[1], start=1):
        row |= {"id": number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
    truth = COCO(
        {
            "images": [{"id": i, "width": 200, "height": 200} for i in range(len(pairs))],
            "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
            "annotations": rows[1],
        }
    )
    coco_eval = COCOeval_faster(truth, truth.loadRes(rows[0]), "bbox")
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval.stats_as_dict


@pytest.mark.parametrize("seed", range(5))
def test_map_equals_faster_coco_eval_and_its_weighted_version_too(seed):
    pairs = [(rank(predictions), references) for predictions, references in scenes(seed)]
    direct = run_faster_coco_eval(pairs)
    scores = detection_metrics(pairs)
    found = scores.values()
    stats = {"map": "AP_all", "map_50": "AP_50", "map_75": "AP_75", "map_small": "AP_small", "map_medium": "AP_medium"}
    for name, stat in stats.items():
        assert found[name] == direct[stat]
        weighted = scores.metrics[name].compute(np.ones((1, len(pairs))))[0]
        assert weighted == pytest.approx(direct[stat], abs=1e-12)
    assert direct["AP_small"] != direct["AP_medium"] > 0
    assert direct["AP_large"] == -1
    assert math.isnan(found["map_large"])
    assert 0.05 < found["map"] < 1
    assert found["map"] == pytest.approx(np.mean(list(scores.labels.values())), abs=1e-12)


def test_weight_of_example_equals_repeating_it():
    pairs = list(scenes(9, count=6))
    indices = [0, 0, 0, 1, 3, 3]
    weights = np.array([[3.0, 1, 0, 2, 0, 0]])
    metrics, repeated = detection_metrics(pairs).metrics, detection_metrics([pairs[i] for i in indices])
    for name, metric in metrics.items():
        expected = repeated.metrics[name].compute(np.ones((1, 6)))[0]
        assert metric.compute(weights)[0] == pytest.approx(expected, abs=1e-12, nan_ok=True), name


def test_average_precision_counts_at_most_100_boxes_of_a_label():
    references = items(([0, 0, 10, 10], "a"))
    predictions = items(*[([50, 50, 60, 60], "a", 0.9)] * 100, ([0, 0, 10, 10], "a", 0.1))
    found = detection_metrics([(predictions, references)]).values()
    assert found["map"] == 0
    assert found["recall"] == 1  # precision and recall count all predictions


def test_average_precision_ranks_by_score():
    references = [items(([0, 0, 10, 10], "a")), items(([0, 0, 10, 10], "a"))]

    def found(right, wrong):
        predictions = [items(([0, 0, 10, 10], "a", right)), items(([50, 50, 60, 60], "a", wrong))]
        return detection_metrics(list(zip(predictions, references, strict=True))).values()["map"]

    assert found(0.9, 0.1) == pytest.approx(51 / 101)  # recalls from 0 to 0.5
    assert found(0.1, 0.9) == pytest.approx(51 / 101 / 2)


def test_precision_recall_f1_of_hand_made_boxes():
    predictions = items(([0, 0, 10, 10], "Cat "), ([0, 0, 10, 10], "cat"), ([50, 50, 60, 60], "dog"))
    references = items(([0, 0, 10, 9], "cat"), ([70, 70, 90, 90], "cat"))
    found = detection_metrics([(predictions, references)]).values()
    assert found["precision"] == pytest.approx(1 / 3)  # the second of two boxes on one reference is wrong
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [
        ([], [], {"map": None, "f1": None, "precision": None, "recall": None}),
        ([], items(([0, 0, 1, 1], "a")), {"map": 0, "f1": 0, "precision": None, "recall": 0}),
        (items(([0, 0, 1, 1], "a")), [], {"map": None, "f1": 0, "precision": 0, "recall": None}),
        (items(([5, 5, 5, 5], "a")), items(([5, 5, 5, 5], "a")), {"map": 0, "f1": 0}),  # no area
        (items(([9, 9, 0, 0], "a")), items(([0, 0, 9, 9], "a")), {"map": 0, "f1": 0, "precision": 0}),
    ],
    ids=["both empty", "no predictions", "no references", "no area", "corners swapped"],
)
def test_empty_inputs_divide_nothing_by_zero(predictions, references, expected):
    found = detection_metrics([(predictions, references)]).values()
    assert {name: None if math.isnan(found[name]) else found[name] for name in expected} == expected


def test_box_ious_by_hand():
    ious = box_ious(items(([0, 0, 10, 10],), ([20, 20, 30, 30],)), items(([5, 0, 15, 10],), ([0, 0, 10, 10],)))
    assert ious == pytest.approx(np.array([[1 / 3, 1], [0, 0]]))


def test_match_greedily_uses_each_reference_once_in_order_of_predictions():
    ious = np.array([[0.6, 0.9], [0.7, 0.95], [0.55, 0.1]])
    assert match_greedily(ious, IOU_THRESHOLDS[:1])[0].tolist() == [1, 0, -1]


def test_region_proposal_metrics_ignore_labels():
    predictions, references = items(([0, 0, 10, 10], "x")), items(([0, 0, 10, 10], ""))
    found = region_proposal_metrics([(predictions, references)]).values()
    assert math.isnan(found.pop("map_medium"))
    assert math.isnan(found.pop("map_large"))
    names = ("map", "map_50", "map_75", "map_small", "f1", "precision", "recall")
    assert found == dict.fromkeys(names, 1)


def test_dense_captions_match_by_box_and_compare_by_text():
    predictions = items(([0, 0, 10, 10], "a red cat"), ([50, 50, 60, 60], "a dog"))
    references = items(([0, 0, 10, 10], "a red hat"), ([90, 90, 99, 99], "a bird"))
    found = dense_caption_metrics([(predictions, references)]).values()
    assert found["words_anls"] == pytest.approx(8 / 9 / 2)
    assert found["recall"] == 0.5


def test_grounding_metrics_by_hand():
    references = items(([0, 0, 10, 10], "A cat"), ([20, 0, 30, 10], "a cat"), ([50, 50, 60, 60], "a mat"))
    predictions = items(([20, 0, 30, 10], "a cat", 0.9), ([80, 80, 90, 90], "a mat"), ([1, 1, 2, 2], "sky"))
    found = grounding_metrics([(predictions, references)]).values()
    assert found["phrase_accuracy"] == 0.5  # the box of `a cat` matches one of two, that of `a mat` none
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["precision"] == pytest.approx(1 / 3)


def test_phrase_accuracy_uses_the_box_with_the_highest_score():
    references = items(([0, 0, 10, 10], "a cat"))
    predictions = items(([0, 0, 10, 10], "a cat", 0.2), ([50, 50, 60, 60], "a cat", 0.8))
    assert grounding_metrics([(predictions, references)]).values()["phrase_accuracy"] == 0
