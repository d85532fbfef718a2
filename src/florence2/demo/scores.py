"""How well a model answers about scenes it never saw: one number for each thing it should be able to do.

It asks in batches, greedily, through the same processing as everybody. It knows nothing of how the model learnt.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Florence2ForConditionalGeneration

from florence2.demo.scenes import Scene
from florence2.demo.sheet import all_emoji
from florence2.demo.stages.images import small_image
from florence2.demo.targets import SceneTarget, scene_target
from florence2.model.locations import decode
from florence2.model.processing import Preprocessor
from florence2.model.tasks import TASKS, find_task

Answered = tuple[Scene, SceneTarget, Any]
"""A scene, what is true of it and what the model said, read."""
WANTED = {
    "caption: names found": 0.97,
    "caption: all right": 0.85,
    "od: f1 at iou 0.5": 0.85,
    "ocr: all right": 0.80,
    "caption_to_phrase_grounding: iou 0.5": 0.85,
    "region_to_category: all right": 0.90,
}


def score(
    model: Florence2ForConditionalGeneration,
    preprocessor: Preprocessor,
    scenes: Sequence[Scene],
    tasks: Sequence[str] = (),
) -> dict[str, float]:
    """Ask all tasks, or those named, about scenes; return the share that is right, by task and measure."""
    scores: dict[str, float] = {}
    pixels_BHWC = np.stack([small_image(made) for made in scenes])
    for name in tasks or [task.name for task in TASKS]:
        answered = answer(model, preprocessor, scenes, pixels_BHWC, name)
        for measure, value in measures(name, answered).items():
            scores[f"{name}: {measure}"] = round(value, 4)
    return scores


@torch.inference_mode()
def answer(
    model: Florence2ForConditionalGeneration,
    preprocessor: Preprocessor,
    scenes: Sequence[Scene],
    pixels_BHWC: np.ndarray,
    name: str,
    batch: int = 100,
) -> list[Answered]:
    """Ask one task about scenes; those that have no truth for it are left out."""
    asked = [(i, told) for i, made in enumerate(scenes) if (told := scene_target(made, name, i))]
    answered: list[Answered] = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        prompts = [preprocessor.prompt_ids(find_task(name), told.input) for _, told in part]
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([prompt + [1] * (longest - len(prompt)) for prompt in prompts], device=model.device)
        pixels = preprocessor.normalize(pixels_BHWC[[i for i, _ in part]]).to(model.device, model.dtype)
        said = model.generate(
            input_ids=ids, pixel_values=pixels, attention_mask=(ids != 1).long(), num_beams=1, max_new_tokens=64
        )
        for (i, told), row in zip(part, said, strict=True):
            value = decode(find_task(name), preprocessor.decode(row), scenes[i].size)
            answered.append((scenes[i], told, value))
    return answered


def measures(name: str, answered: Sequence[Answered]) -> dict[str, float]:
    """Score the answers to one task."""
    if isinstance(answered[0][1].answer, str):
        exact = {"all right": _share([said == told.answer for _, told, said in answered])}
        return _names_found(answered) | exact if "caption" in name else exact
    if "polygons" in answered[0][1].answer and name != "open_vocabulary_detection":
        return {"mean iou": float(np.mean([_mask_iou(made.size, told.answer, said) for made, told, said in answered]))}
    counts = np.sum([_matches(told.answer, said) for _, told, said in answered], axis=0)
    right, wanted, given = (float(count) for count in counts)
    measure = "iou 0.5" if name == "caption_to_phrase_grounding" else "f1 at iou 0.5"
    return {measure: right / wanted if measure == "iou 0.5" else 2 * right / max(wanted + given, 1)}


def _names_found(answered: Sequence[Answered]) -> dict[str, float]:
    every = {emoji.name for emoji in all_emoji()}
    found = [
        (thing.name in said.replace(",", " ").replace(".", " ").split())
        for made, _, said in answered
        for thing in made.objects
        if thing.name in every
    ]
    return {"names found": _share(found)}


def _share(right: Sequence[bool]) -> float:
    return sum(right) / max(len(right), 1)


def _matches(wanted: dict[str, Any], given: dict[str, Any]) -> tuple[int, int, int]:
    """Count boxes (or quads, by what surrounds them) that are right, label included; those wanted; those given."""
    wanted_boxes, given_boxes = _labelled(wanted), _labelled(given)
    left, right = list(given_boxes), 0
    for label, box in wanted_boxes:
        fits = next((one for one in left if one[0] == label and iou(box, one[1]) >= 0.5), None)
        if fits:
            left.remove(fits)
            right += 1
    return right, len(wanted_boxes), len(given_boxes)


def _labelled(value: dict[str, Any]) -> list[tuple[str, list[float]]]:
    labels = value.get("bboxes_labels", value.get("labels", []))
    places = value.get("bboxes", value.get("quad_boxes", []))
    around = [[min(p[0::2]), min(p[1::2]), max(p[0::2]), max(p[1::2])] for p in places]
    return list(zip(labels, around, strict=False))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the overlap of two boxes over their union."""
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    both = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / max(sum(areas) - both, 1e-9)


def _mask_iou(size: tuple[int, int], wanted: dict[str, Any], given: dict[str, Any]) -> float:
    a, b = (_filled(size, value["polygons"]) for value in (wanted, given))
    return float((a & b).sum() / max((a | b).sum(), 1))


def _filled(size: tuple[int, int], objects: list[list[list[float]]]) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.new("1", size)
    for run in (run for one in objects for run in one if len(run) >= 6):
        ImageDraw.Draw(image).polygon(run, fill=1)
    return np.asarray(image)
