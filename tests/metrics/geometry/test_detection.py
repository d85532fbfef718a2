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
from florence2.metrics.geometry.matching import IOU_THRESHOLDS, Instances, box_ious, match_greedily

NOTHING = Instances([], [], [])


def objects(*rows):
    """Rows of (box, label) or (box, label, score)."""
    return Instances([r[0] for r in rows], [r[1] for r in rows], [r[2] if len(r) > 2 else 1.0 for r in rows])


def scenes(seed, count=15):
    """Random pictures: wanted boxes of four labels, and what was said, partly near them, with scores that tie."""
    random = Random(seed)
    for _ in range(count):
        wanted = [_box(random) for _ in range(random.randrange(6))]
        near = [_near(box, random) for box in wanted if random.random() < 0.8]
        far = [_box(random) for _ in range(random.randrange(4))]
        yield (
            Instances(
                [b for b, _ in near + far], [x for _, x in near + far], [round(random.random(), 1) for _ in near + far]
            ),
            Instances([b for b, _ in wanted], [x for _, x in wanted], [1.0] * len(wanted)),
        )


def _box(random):
    x, y = random.uniform(0, 80), random.uniform(0, 80)
    return [x, y, x + random.uniform(5, 60), y + random.uniform(5, 60)], random.choice("abcd")


def _near(row, random):
    (x1, y1, x2, y2), label = row
    moved = [x1 + random.gauss(0, 2), y1 + random.gauss(0, 2), x2 + random.gauss(0, 2), y2 + random.gauss(0, 2)]
    return moved, label if random.random() < 0.9 else "unheard of"


def run_directly(pairs):
    """Score with faster-coco-eval alone."""
    names = sorted({label for _, wanted in pairs for label in wanted.labels})
    rows = []
    for side in (0, 1):
        rows.append([])
        for image, pair in enumerate(pairs):
            for (x1, y1, x2, y2), label, score in zip(
                pair[side].places, pair[side].labels, pair[side].scores, strict=True
            ):
                if label in names:
                    row = {"image_id": image, "category_id": names.index(label) + 1, "score": score}
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
    run = COCOeval_faster(truth, truth.loadRes(rows[0]), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats_as_dict


@pytest.mark.parametrize("seed", range(5))
def test_map_is_faster_coco_evals_and_the_weighted_one_equals_it(seed):
    pairs = list(scenes(seed))
    direct = run_directly(pairs)
    scores = detection_metrics(pairs)
    found = scores.values()
    for ours, theirs in (("map", "AP_all"), ("map_50", "AP_50"), ("map_75", "AP_75")):
        assert found[ours] == direct[theirs]
        own = scores.metrics[ours].of(np.ones((1, len(pairs))))[0]
        assert own == pytest.approx(direct[theirs], abs=1e-12)
    assert 0.05 < found["map"] < 1
    assert found["map"] == pytest.approx(np.mean(list(scores.labels.values())), abs=1e-12)


def test_an_image_of_weight_two_counts_as_two_images():
    pairs = list(scenes(9, count=6))
    drawn = [0, 0, 0, 1, 3, 3]
    weights = np.array([[3.0, 1, 0, 2, 0, 0]])
    measures, repeated = detection_metrics(pairs).metrics, detection_metrics([pairs[i] for i in drawn])
    for name, measure in measures.items():
        again = repeated.metrics[name].of(np.ones((1, 6)))[0]
        assert measure.of(weights)[0] == pytest.approx(again, abs=1e-12), name


def test_no_more_than_a_hundred_boxes_of_a_label_are_looked_at():
    wanted = objects(([0, 0, 10, 10], "a"))
    said = objects(*[([50, 50, 60, 60], "a", 0.9)] * 100, ([0, 0, 10, 10], "a", 0.1))
    found = detection_metrics([(said, wanted)]).values()
    assert found["map"] == 0
    assert found["recall"] == 1  # precision and recall are over all that was said


def test_scores_decide_the_order():
    wanted = [objects(([0, 0, 10, 10], "a")), objects(([0, 0, 10, 10], "a"))]

    def found(right, wrong):
        said = [objects(([0, 0, 10, 10], "a", right)), objects(([50, 50, 60, 60], "a", wrong))]
        return detection_metrics(list(zip(said, wanted, strict=True))).values()["map"]

    assert found(0.9, 0.1) == pytest.approx(51 / 101)  # recalls from 0 to 0.5
    assert found(0.1, 0.9) == pytest.approx(51 / 101 / 2)


def test_counts_by_hand():
    said = objects(([0, 0, 10, 10], "Cat "), ([0, 0, 10, 10], "cat"), ([50, 50, 60, 60], "dog"))
    wanted = objects(([0, 0, 10, 9], "cat"), ([70, 70, 90, 90], "cat"))
    found = detection_metrics([(said, wanted)]).values()
    assert found["precision"] == pytest.approx(1 / 3)  # the second of two boxes on one cat is wrong
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("said", "wanted", "expected"),
    [
        (NOTHING, NOTHING, {"map": None, "f1": None, "precision": None, "recall": None}),
        (NOTHING, objects(([0, 0, 1, 1], "a")), {"map": 0, "f1": 0, "precision": None, "recall": 0}),
        (objects(([0, 0, 1, 1], "a")), NOTHING, {"map": None, "f1": 0, "precision": 0, "recall": None}),
        (objects(([5, 5, 5, 5], "a")), objects(([5, 5, 5, 5], "a")), {"map": 0, "f1": 0}),  # no area
        (objects(([9, 9, 0, 0], "a")), objects(([0, 0, 9, 9], "a")), {"map": 0, "f1": 0, "precision": 0}),
    ],
    ids=["nothing", "nothing said", "nothing wanted", "no area", "corners swapped"],
)
def test_nothing_is_divided_by_zero(said, wanted, expected):
    found = detection_metrics([(said, wanted)]).values()
    assert {name: None if math.isnan(found[name]) else found[name] for name in expected} == expected


def test_overlaps_are_in_pixels():
    ious = box_ious([[0, 0, 10, 10], [20, 20, 30, 30]], [[5, 0, 15, 10], [0, 0, 10, 10]])
    assert ious == pytest.approx(np.array([[1 / 3, 1], [0, 0]]))


def test_the_surer_box_chooses_first_and_no_wanted_one_is_given_twice():
    ious = np.array([[0.6, 0.9], [0.7, 0.95], [0.55, 0.1]])
    assert match_greedily(ious, IOU_THRESHOLDS[:1])[0].tolist() == [1, 0, -1]


def test_regions_have_no_labels():
    said, wanted = objects(([0, 0, 10, 10], "x")), objects(([0, 0, 10, 10], ""))
    assert region_proposal_metrics([(said, wanted)]).values() == {
        "map": 1, "map_50": 1, "map_75": 1, "f1": 1, "precision": 1, "recall": 1,
    }  # fmt: skip


def test_descriptions_are_matched_by_place_and_compared_by_words():
    said = objects(([0, 0, 10, 10], "a red cat"), ([50, 50, 60, 60], "a dog"))
    wanted = objects(([0, 0, 10, 10], "a red hat"), ([90, 90, 99, 99], "a bird"))
    found = dense_caption_metrics([(said, wanted)]).values()
    assert found["words_anls"] == pytest.approx(8 / 9 / 2)
    assert found["recall"] == 0.5


def test_phrases():
    wanted = objects(([0, 0, 10, 10], "A cat"), ([20, 0, 30, 10], "a cat"), ([50, 50, 60, 60], "a mat"))
    said = objects(([20, 0, 30, 10], "a cat", 0.9), ([80, 80, 90, 90], "a mat"), ([1, 1, 2, 2], "sky"))
    found = grounding_metrics([(said, wanted)]).values()
    assert found["phrase_accuracy"] == 0.5  # the cat's box is on one of its two, the mat's is not
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["precision"] == pytest.approx(1 / 3)


def test_only_the_surest_box_of_a_phrase_decides():
    wanted = objects(([0, 0, 10, 10], "a cat"))
    said = objects(([0, 0, 10, 10], "a cat", 0.2), ([50, 50, 60, 60], "a cat", 0.8))
    assert grounding_metrics([(said, wanted)]).values()["phrase_accuracy"] == 0
