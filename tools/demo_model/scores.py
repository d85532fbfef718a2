"""Scores of a demo model on held-out scenes, by task: `python -m tools.demo_model.scores --model_path DIR`.

Predictions are greedy, in batches, with the package's own preprocessing.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from transformers import Florence2ForConditionalGeneration, Florence2Processor

import florence2.demo
from florence2.demo.scenes import Scene, make_scene
from florence2.demo.targets import SceneTarget, scene_target
from florence2.model.answer import Answer, GeometryKind
from florence2.model.locations import clean_text, decode
from florence2.model.processing import Preprocessor
from florence2.model.tasks import TASKS, OutputType, find_task
from tools.demo_model.pretraining.image_store import render_resized

BUNDLED_MODEL = Path(florence2.demo.__file__).parent / "model"
EVAL_SEED = 5_000_000
MIN_SCORES = {
    "caption: names found": 0.97,
    "caption: exact match": 0.85,
    "od: f1 at iou 0.5": 0.85,
    "ocr: exact match": 0.80,
    "caption_to_phrase_grounding: recall at iou 0.5": 0.85,
    "region_to_category: exact match": 0.90,
}


@dataclass(frozen=True)
class ScenePrediction:
    """The decoded answer of a model about a scene, beside its target."""

    scene: Scene
    target: SceneTarget
    answer: str | Answer


def main() -> None:
    """Parse the command line and print the scores of a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=Path, default=BUNDLED_MODEL, help="folder of the model (default: bundled)")
    parser.add_argument("--num_scenes", type=int, default=400, help="held-out scenes to score on")
    parser.add_argument("--seed", type=int, default=EVAL_SEED, help="seed of the first scene")
    args = parser.parse_args()
    print_scores(score_checkpoint(args.model_path, args.num_scenes, args.seed))


def score_checkpoint(folder: Path, num_scenes: int, first_seed: int = EVAL_SEED) -> dict[str, float]:
    """Score a saved model, in float32, on scenes that it was not trained on."""
    model = Florence2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    preprocessor = Preprocessor.from_processor(Florence2Processor.from_pretrained(folder))
    return score(model, preprocessor, [make_scene(first_seed + i) for i in range(num_scenes)])


def print_scores(scores: Mapping[str, float]) -> None:
    """Print a line for each score, with the required minimum if there is one."""
    for name, value in scores.items():
        minimum = f"   minimum {MIN_SCORES[name]:.2f}" if name in MIN_SCORES else ""
        sys.stdout.write(f"{name:50} {value:.3f}{minimum}\n")


def score(
    model: Florence2ForConditionalGeneration,
    preprocessor: Preprocessor,
    scenes: Sequence[Scene],
    tasks: Sequence[str] = (),
) -> dict[str, float]:
    """Predict scenes by all tasks, or by those named; return the scores as `task: metric`."""
    scores: dict[str, float] = {}
    pixels_BHWC = np.stack([render_resized(scene) for scene in scenes])
    for task in tasks or [task.name for task in TASKS]:
        predictions = predict_scenes(model, preprocessor, scenes, pixels_BHWC, task)
        for metric, value in compute_metrics(task, predictions).items():
            scores[f"{task}: {metric}"] = round(value, 4)
    return scores


@torch.inference_mode()
def predict_scenes(
    model: Florence2ForConditionalGeneration,
    preprocessor: Preprocessor,
    scenes: Sequence[Scene],
    pixels_BHWC: npt.NDArray[np.uint8],
    task: str,
    batch_size: int = 100,
) -> list[ScenePrediction]:
    """Predict one task for the scenes that have a target for it."""
    targets = [(i, target) for i, scene in enumerate(scenes) if (target := scene_target(scene, task, i))]
    predictions: list[ScenePrediction] = []
    for start in range(0, len(targets), batch_size):
        batch = targets[start : start + batch_size]
        prompts = [preprocessor.prompt_ids(find_task(task), target.input) for _, target in batch]
        length = max(len(prompt) for prompt in prompts)
        input_ids = torch.tensor([prompt + [1] * (length - len(prompt)) for prompt in prompts], device=model.device)
        pixels_BCHW = preprocessor.normalize(pixels_BHWC[[i for i, _ in batch]]).to(model.device, model.dtype)
        output_ids = model.generate(
            input_ids=input_ids,
            pixel_values=pixels_BCHW,
            attention_mask=(input_ids != 1).long(),
            num_beams=1,
            max_new_tokens=64,
        )
        for (i, target), row in zip(batch, output_ids, strict=True):
            predictions.append(
                ScenePrediction(scenes[i], target, _read_answer(task, preprocessor.decode(row), scenes[i]))
            )
    return predictions


def compute_metrics(task: str, predictions: Sequence[ScenePrediction]) -> dict[str, float]:
    """Return the metrics of one task."""
    if find_task(task).output_type is OutputType.TEXT:
        exact_match = {"exact match": _mean([each.answer == each.target.answer for each in predictions])}
        return {"names found": _names_found(predictions)} | exact_match if "caption" in task else exact_match
    if find_task(task).output_type is OutputType.POLYGONS:
        ious = [_mask_iou(each.scene.size, *_positions(each)) for each in predictions]
        return {"mean iou": float(np.mean(ious))}
    counts = np.sum([_count_matches(*_positions(each)) for each in predictions], axis=0)
    num_matches, num_targets, num_predictions = (float(count) for count in counts)
    if task == "caption_to_phrase_grounding":
        return {"recall at iou 0.5": num_matches / num_targets}
    return {"f1 at iou 0.5": 2 * num_matches / max(num_targets + num_predictions, 1)}


def _read_answer(task: str, text: str, scene: Scene) -> str | Answer:
    row = find_task(task)
    return clean_text(text) if row.output_type is OutputType.TEXT else decode(row, text, scene.size)


def _positions(prediction: ScenePrediction) -> tuple[Answer, Answer]:
    """Return the target and the answer of a task that answers positions."""
    target, answer = prediction.target.answer, prediction.answer
    assert isinstance(target, Answer) and isinstance(answer, Answer)  # noqa: PT018
    return target, answer


def _names_found(predictions: Sequence[ScenePrediction]) -> float:
    """Return the fraction of the objects whose name is a word of the caption."""
    return _mean(
        [
            obj.name in str(each.answer).replace(",", " ").replace(".", " ").split()
            for each in predictions
            for obj in each.scene.objects
        ]
    )


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / max(len(values), 1)


def _count_matches(target: Answer, answer: Answer) -> tuple[int, int, int]:
    """Return the numbers of matches, targets and predictions; a match has the same label and an IoU of 0.5."""
    target_boxes, predicted_boxes = _labeled_boxes(target), _labeled_boxes(answer)
    unmatched, num_matches = list(predicted_boxes), 0
    for label, box in target_boxes:
        match = next((each for each in unmatched if each[0] == label and iou(box, each[1]) >= 0.5), None)
        if match:
            unmatched.remove(match)
            num_matches += 1
    return num_matches, len(target_boxes), len(predicted_boxes)


def _labeled_boxes(answer: Answer) -> list[tuple[str, list[float]]]:
    """Return labels and boxes; a quad counts by its bounding box, a polygon not at all."""
    return [(item.label, item.bounding_box) for item in answer if item.kind is not GeometryKind.POLYGONS]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection of two boxes over their union."""
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    intersection = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return intersection / max(sum(areas) - intersection, 1e-9)


def _mask_iou(size: tuple[int, int], target: Answer, answer: Answer) -> float:
    a, b = (_fill_polygons(size, each.polygons) for each in (target, answer))
    return float((a & b).sum() / max((a | b).sum(), 1))


def _fill_polygons(size: tuple[int, int], objects: list[list[list[float]]]) -> npt.NDArray[np.bool_]:
    image = Image.new("1", size)
    for polygon in (polygon for polygons in objects for polygon in polygons if len(polygon) >= 6):
        ImageDraw.Draw(image).polygon(polygon, fill=1)
    return np.asarray(image)


if __name__ == "__main__":
    main()
