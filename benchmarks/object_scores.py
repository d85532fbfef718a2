"""How well object scores tell right objects from wrong ones, on scenes that the model was not trained on.

    python -m benchmarks.object_scores --num_scenes 3000 --num_fit_scenes 3000
    python -m benchmarks.object_scores --num_scenes 300 --num_fit_scenes 300 --tasks od
    python -m benchmarks.object_scores --num_fit_scenes 3000 --write src/florence2/demo/model/score_calibration.json

An object is right if its label and its box are: the same label, an IoU of at least 0.5, each target once. The expected
calibration error is the mean distance of score and fraction of right objects in 15 bins. `token` scores a location
token by its own probability, `mass` by that within an eighth of the object's side, and `calibrated` maps this score to
the fraction that is right, by a regression on other scenes; `--write` writes it. Prints a table, and one line of JSON
last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from florence2.data.sample import Prediction, Sample
from florence2.demo.scenes import make_scene
from florence2.demo.targets import scene_target
from florence2.engine.decoding import outputs
from florence2.engine.engine import Engine
from florence2.metrics.geometry.detection import detection_metrics
from florence2.metrics.geometry.matching import IOU_THRESHOLDS, ItemsPair, box_ious, match_greedily, rank
from florence2.model.answer import Answer
from florence2.model.load import load
from florence2.model.storage.score_calibration import ScoreCalibration, TaskCalibration, log_odds

BOX_TASKS = (
    "od",
    "dense_region_caption",
    "region_proposal",
    "caption_to_phrase_grounding",
    "open_vocabulary_detection",
)
FIT_SEED, TEST_SEED = 7_000_000, 8_000_000
NUM_BINS = 15


def main() -> None:
    """Measure the scores of each task, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_scenes", type=int, default=0, help="scenes to score; 0 only fits")
    parser.add_argument("--num_fit_scenes", type=int, default=0, help="scenes to fit; 0 takes the model's calibration")
    parser.add_argument("--model_path", default="demo")
    parser.add_argument("--tasks", nargs="*", choices=BOX_TASKS, default=BOX_TASKS)
    parser.add_argument("--write", type=Path, help="file for the fitted calibration")
    options = parser.parse_args()
    model, processor = load(options.model_path, dtype=torch.float32, device="cpu")
    calibration = model.score_calibration
    if options.num_fit_scenes:
        calibration = ScoreCalibration(
            {task: fit(*plain_scores(model, processor, task, options.num_fit_scenes)) for task in options.tasks}
        )
        if options.write:
            tasks = {
                task: {name: round(n, 4) for name, n in asdict(row).items()} for task, row in calibration.tasks.items()
            }
            options.write.write_text(json.dumps({"tasks": tasks}, indent=1) + "\n")
    rows = [
        {"task": task, "scores": name, **row}
        for task in options.tasks
        if options.num_scenes
        for name, row in measure(model, processor, task, options.num_scenes, calibration).items()
    ]
    for row in rows:
        sys.stdout.write(
            "  ".join(f"{value:.4f}" if isinstance(value, float) else f"{value:28}" for value in row.values())
        )
        sys.stdout.write("\n")
    sys.stdout.write(
        json.dumps({"scenes": options.num_scenes, "fit_scenes": options.num_fit_scenes, "rows": rows}) + "\n"
    )


def measure(
    model: Any, processor: Any, task: str, num_scenes: int, calibration: ScoreCalibration | None
) -> dict[str, dict[str, float]]:
    """Return for each kind of score mAP, calibration error, and how many of those scored about 0.9 are right."""
    kinds: dict[str, tuple[float, ScoreCalibration | None]] = {
        "token": (0.0, None),
        "mass": (outputs.TOLERANCE, None),
        "calibrated": (outputs.TOLERANCE, calibration),
    }
    return {
        name: _summary(predict(model, processor, task, TEST_SEED, num_scenes, tolerance, kind))
        for name, (tolerance, kind) in kinds.items()
    }


def _summary(pairs: Sequence[ItemsPair]) -> dict[str, float]:
    values = detection_metrics(pairs).values()
    scored = [
        (item.score or 0.0, is_right) for pair in pairs for item, is_right in zip(*right_items(pair), strict=True)
    ]
    scores, right = np.array([score for score, _ in scored]), np.array([each for _, each in scored], dtype=float)
    near = np.abs(scores - 0.9) <= 0.05
    return {
        "map": values["map"],
        "map_50": values["map_50"],
        "mean_score": float(scores.mean()),
        "right": float(right.mean()),
        "calibration_error": calibration_error(scores, right),
        "right_near_0.9": float(right[near].mean()) if near.any() else float("nan"),
    }


def calibration_error(scores: Any, right: Any) -> float:
    """Return the expected calibration error."""
    index = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [abs(float((scores - right)[index == number].sum())) for number in range(NUM_BINS)]
    return sum(gaps) / max(len(scores), 1)


def right_items(pair: ItemsPair) -> tuple[Sequence[Any], list[bool]]:
    """Return the predicted objects by falling score, and which of them are right."""
    predictions, references = rank(pair[0]), pair[1]
    ious_DG = box_ious(predictions, references)
    for d, item in enumerate(predictions):
        for g, reference in enumerate(references):
            ious_DG[d, g] *= item.label == reference.label
    matches = match_greedily(ious_DG, IOU_THRESHOLDS[:1])[0]
    return predictions, [bool(match >= 0) for match in matches]


def plain_scores(model: Any, processor: Any, task: str, num_scenes: int) -> tuple[Any, Any]:
    """Return the score of each object without a calibration, and which objects are right."""
    pairs = predict(model, processor, task, FIT_SEED, num_scenes, outputs.TOLERANCE, None)
    scored = [row for pair in pairs for row in zip(*right_items(pair), strict=True)]
    return np.array([item.score for item, _ in scored]), np.array([float(is_right) for _, is_right in scored])


def fit(scores: Any, right: Any, steps: int = 50, penalty: float = 0.1) -> TaskCalibration:
    """Fit a logistic regression by Newton's method with halved steps; a penalty keeps the scale near 1."""
    rows = np.array([[log_odds(score), 1.0] for score in scores])
    weights, prior = np.array([0.0, log_odds(float(right.mean()))]), np.array([1.0, 0.0])

    def loss(candidate: Any) -> float:
        odds = rows @ candidate
        return float(np.logaddexp(0, odds).sum() - right @ odds + penalty / 2 * ((candidate - prior) ** 2).sum())

    for _ in range(steps):
        expected = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        gradient = rows.T @ (expected - right) + penalty * (weights - prior)
        curvature = (rows * (expected * (1 - expected))[:, None]).T @ rows + penalty * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-9:
            step = step / 2
        weights = weights - step
    return TaskCalibration(*map(float, weights))


def predict(
    model: Any, processor: Any, task: str, first_seed: int, num_scenes: int, tolerance: float, calibration: Any
) -> list[ItemsPair]:
    """Predict scenes with these scores; return predicted and target objects of each."""
    scenes = [(str(i), make_scene(first_seed + i)) for i in range(num_scenes)]
    targets = {name: scene_target(scene, task, int(name)) for name, scene in scenes}
    samples = [Sample(name, scene.render, task, _input(targets[name])) for name, scene in scenes]
    model.score_calibration, outputs.TOLERANCE, before = calibration, tolerance, outputs.TOLERANCE
    try:
        with Engine(model, processor) as engine:
            predictions: Mapping[str, Prediction] = {each.file_name: each for each in engine.run(samples)}
    finally:
        outputs.TOLERANCE = before
    return [(_items(predictions[name]), _items(targets[name])) for name, _ in scenes]


def _input(target: Any) -> str:
    return str(target.input)


def _items(source: Any) -> Sequence[Any]:
    assert isinstance(source.answer, Answer)
    return source.answer.items


if __name__ == "__main__":
    main()
