"""Scores of boxes against pycocotools, run directly on the same COCO file and the same predictions."""

import contextlib
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from florence2.api import evaluate

SIDES = (100, 37, 640, 4000)
Box = list[float]  # [x, y, width, height]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coco")
    for number, side in enumerate(SIDES * 2):
        Image.new("1", (side, SIDES[number % 3])).save(path / f"{number}.png")
    return path


def draw_box(random: Random) -> Box:
    scale = random.choice((1, 1, 1, 4))  # so that there are small, medium and large ones
    return [random.uniform(0, 80), random.uniform(0, 80), *(random.uniform(1, 50) * scale for _ in range(2))]


def draw_dataset(random: Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw a COCO file and results: crowds, areas, gaps in ids, classes and images without objects."""
    categories = random.sample(range(1, 90), random.randint(1, 5))
    images = sorted(random.sample(range(1000), random.randint(1, 8)))
    truths, results = [], []
    for image in images:
        for _ in range(random.choice((0, 1, 3, 8))):
            box, category = draw_box(random), random.choice(categories[: max(1, len(categories) - 1)])
            crowd = int(random.random() < 0.2)
            truths.append({"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd})
            for _ in range(random.choice((0, 1, 1, 2))):
                shift = random.choice((0, 0, 1, 4))
                near = [side + random.gauss(0, shift) for side in box]
                if crowd:  # a box inside the crowd
                    near = [box[0] + box[2] / 4, box[1] + box[3] / 4, box[2] / random.uniform(2, 4), box[3] / 2]
                results.append({"image_id": image, "category_id": category, "bbox": near})
        results += [
            {"image_id": image, "category_id": random.choice(categories), "bbox": draw_box(random)}
            for _ in range(random.choice((0, 0, 2)))
        ]
    if not any(not row["iscrowd"] for row in truths):
        truths.append({"image_id": images[0], "category_id": categories[0], "bbox": draw_box(random), "iscrowd": 0})
    for number, row in enumerate(truths):
        row |= {"id": 3 * number + 7, "area": row["bbox"][2] * row["bbox"][3] * random.uniform(0.5, 1)}
    for row in results:
        row |= {"score": random.random(), "bbox": [*row["bbox"][:2], *(max(side, 0.5) for side in row["bbox"][2:])]}
    rows = [
        {"id": image, "file_name": f"{number}.png", "width": SIDES[number % 4], "height": SIDES[number % 3]}
        for number, image in enumerate(images)
    ]
    names = [{"id": category, "name": f"class {category}"} for category in categories]
    return {"images": rows, "annotations": truths, "categories": names}, results


def run_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """Return AP, AP at 0.5 and at 0.75, and AP of small, medium and large objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = truth
        ground_truth.createIndex()
        run = COCOeval(ground_truth, ground_truth.loadRes([dict(row) for row in results]), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float(value) for value in run.stats[:6]]


def run_florence2(folder: Path, truth: dict[str, Any], results: list[dict[str, Any]], samples: int = 0) -> Any:
    """Write both sides as files and score them."""
    (folder / "truth.json").write_text(json.dumps(truth))
    names = {row["id"]: row["name"] for row in truth["categories"]}
    with (folder / "predictions.jsonl").open("w") as file:
        for image in truth["images"]:
            rows = [row for row in results if row["image_id"] == image["id"]]
            answer = {
                "bboxes": [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)],
                "labels": [names[row["category_id"]] for row in rows],
                "scores": [row.get("score") for row in rows],
            }
            file.write(json.dumps({"file_name": image["file_name"], "task": "<OD>", "answer": answer}) + "\n")
    scores = evaluate(
        predictions=str(folder / "predictions.jsonl"),
        references=str(folder / "truth.json"),
        task="od",
        bootstrap_samples=samples,
    )
    return scores["tasks"]["od"]["scores"]


def compare_datasets(folder: Path, seeds: range) -> None:
    for seed in seeds:
        truth, results = draw_dataset(Random(seed))
        if not results:
            continue
        scores = run_florence2(folder, truth, results)
        names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
        found = [-1 if (value := scores[name]["value"]) is None else value for name in names]
        np.testing.assert_allclose(found, run_pycocotools(truth, results), atol=1e-6, err_msg=str(seed))


def test_map_equals_pycocotools_on_random_datasets(folder: Path) -> None:
    compare_datasets(folder, range(40))


@pytest.mark.long
def test_map_equals_pycocotools_on_hundreds_of_random_datasets(folder: Path) -> None:
    compare_datasets(folder, range(40, 540))


@pytest.mark.parametrize("scores", ["tied", "missing"])
def test_the_order_of_files_does_not_count_where_scores_tie_or_are_missing(folder: Path, scores: str) -> None:
    random = Random(5)
    truth, results = draw_dataset(random)
    for row in results:
        row["score"] = round(row["score"], 1) if scores == "tied" else None
    first = run_florence2(folder, truth, results, samples=20)
    assert 0 < first["map"]["value"] < 1
    for _ in range(3):
        random.shuffle(results)
        random.shuffle(truth["images"])
        assert run_florence2(folder, truth, results, samples=20) == first


def score_boxes(folder: Path, boxes: list[dict[str, Any]], predicted: list[tuple[str, Box, float]], side: int) -> Any:
    """Score predicted boxes [x1, y1, x2, y2] of one image."""
    names = ["cat", "dog"]
    truth = {
        "images": [{"id": 1, "file_name": f"{SIDES.index(side)}.png", "width": side, "height": SIDES[0]}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [{"id": number, "image_id": 1, "category_id": 0, **row} for number, row in enumerate(boxes)],
    }
    results = [
        {
            "image_id": 1,
            "category_id": names.index(label),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for label, (x1, y1, x2, y2), score in predicted
    ]
    return {name: row["value"] for name, row in run_florence2(folder, truth, results).items()}


PERFECT = {"map": 1, "map_50": 1, "map_75": 1, "f1": 1, "precision": 1, "recall": 1}
CROWD = {"bbox": [50, 50, 40, 40], "iscrowd": 1}
CROWD_ROWS = {"bbox": [50, 50, 40, 40], "iscrowd": 1, "segmentation": {"counts": [5050, 40, 4910], "size": [100, 100]}}
INSIDE = [("cat", [side, side, side + 8, side + 8], 0.9) for side in (52, 62, 72)]
CAT = {"bbox": [10, 10, 20, 20]}


@pytest.mark.parametrize(
    ("side", "boxes", "predicted", "expected"),
    [
        (4000, [{"bbox": [101, 101, 8, 8]}], [("cat", [101, 101, 109, 109], 0.9)], PERFECT),  # E1
        (100, [CAT], [("cat", [10, 10, 30, 30], 0.9)], PERFECT),  # E2
        (
            100,
            [CAT, {"bbox": [50, 50, 20, 20], "category_id": 1}],
            [("cat", [10, 10, 30, 30], 0.9)],
            {"map": 0.5, "recall": 0.5, "precision": 1},
        ),  # E3
        (100, [CAT, CROWD], [("cat", [10, 10, 30, 30], 0.5), *INSIDE], PERFECT),  # E5
        (100, [CAT, CROWD_ROWS], [("cat", [10, 10, 30, 30], 0.5), *INSIDE], PERFECT),  # E5, as a run-length mask
        (100, [CAT, CROWD], [("cat", [10, 10, 30, 30], 0.5), ("dog", [52, 52, 60, 60], 0.9)], {"precision": 0.5}),
    ],
)
def test_scores_of_boxes_have_their_exact_values(
    folder: Path,
    side: int,
    boxes: list[dict[str, Any]],
    predicted: list[tuple[str, Box, float]],
    expected: dict[str, float],
) -> None:
    found = score_boxes(folder, boxes, predicted, side)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
