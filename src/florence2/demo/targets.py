"""What is true of a scene, said for each of the fifteen tasks: input, wire text and structured answer.

Every wording is one fixed template. No three tokens in a row come twice in one text, since Florence-2 generates under
that rule. This file knows the tasks and the location codec, and no model.
"""

from dataclasses import dataclass
from typing import Any

from florence2.demo.scenes import Scene, SceneObject
from florence2.model.locations import encode, encode_region
from florence2.model.tasks import TASKS, Task, find_task

_NUMBERS = ("no", "one", "two", "three", "four")


@dataclass(frozen=True)
class SceneTarget:
    """One question about a scene and its answer; `answer` is what `locations.read` gives, in pixels."""

    task: str
    input: str
    text: str
    answer: Any


def scene_target(made: Scene, task: str, pick: int = 0) -> SceneTarget | None:
    """Say the truth of a scene for a task; `pick` chooses among the inputs there are, round and round.

    None where there is nothing to ask: the text in a region of a scene without a word.
    """
    row = find_task(task)
    thing = made.objects[pick % len(made.objects)]
    region = encode_region(thing.box, made.size)
    match row.name:
        case "caption":
            return _said(made, row, "", caption(made))
        case "detailed_caption":
            return _said(made, row, "", detailed_caption(made))
        case "more_detailed_caption":
            return _said(made, row, "", more_detailed_caption(made))
        case "ocr":
            return _said(made, row, "", made.sign.word if made.sign else "")
        case "ocr_with_region":
            signs = [made.sign] if made.sign else []
            quads = {"quad_boxes": [list(sign.quad) for sign in signs], "labels": [sign.word for sign in signs]}
            return _said(made, row, "", quads)
        case "od":
            return _said(made, row, "", boxes(made.objects, [thing.name for thing in made.objects]))
        case "dense_region_caption":
            return _said(made, row, "", boxes(made.objects, [description(thing) for thing in made.objects]))
        case "region_proposal":
            return _said(made, row, "", boxes(made.objects, ["" for _ in made.objects]))
        case "caption_to_phrase_grounding":
            return grounding(made, row, pick)
        case "open_vocabulary_detection":
            found = boxes([thing], [thing.name])
            answer = {
                "bboxes": found["bboxes"],
                "bboxes_labels": found["labels"],
                "polygons": [],
                "polygons_labels": [],
            }
            return _said(made, row, thing.name, answer)
        case "referring_expression_segmentation":
            return _said(made, row, f"the {thing.name}", mask(thing))
        case "region_to_segmentation":
            return _said(made, row, region, mask(thing))
        case "region_to_category":
            return _said(made, row, region, thing.name)
        case "region_to_description":
            return _said(made, row, region, description(thing))
        case "region_to_ocr" if made.sign:
            return _said(made, row, encode_region(made.sign.box, made.size), made.sign.word)
    return None


def all_targets(made: Scene, pick: int = 0) -> list[SceneTarget]:
    """Say the truth of a scene for every task that has one."""
    return [told for task in TASKS if (told := scene_target(made, task.token, pick))]


def _said(made: Scene, task: Task, asked: str, answer: Any) -> SceneTarget:
    return SceneTarget(task.token, asked, encode(task, answer, made.size), answer)


def caption(made: Scene) -> str:
    """`a dog, a cat and an apple on a blue ground, with the word STOP`."""
    return f"{_listed([_phrase(thing) for thing in made.objects])} on a {made.background} ground{_with_word(made)}"


def detailed_caption(made: Scene) -> str:
    """`top left dog and right cat on a blue ground, with the word STOP at the bottom`."""
    things = _listed([f"{thing.place} {thing.name}" for thing in made.objects])
    at = f" at the {made.sign.place}" if made.sign else ""
    return f"{things} on a {made.background} ground{_with_word(made)}{at}"


def more_detailed_caption(made: Scene) -> str:
    """`The picture shows two things on a blue ground: top left small dog and right large cat.` and where a word is."""
    count = f"{_NUMBERS[len(made.objects)]} thing{'s' * (len(made.objects) > 1)}"
    things = _listed([f"{thing.place} {thing.size} {thing.name}" for thing in made.objects])
    word = f" The word {made.sign.word} is at the {made.sign.place}." if made.sign else ""
    return f"The picture shows {count} on a {made.background} ground: {things}.{word}"


def tags(made: Scene) -> str:
    """`dog, cat, blue ground, STOP`: a style the bundled model was not taught."""
    words = [made.sign.word] if made.sign else []
    return ", ".join([*(thing.name for thing in made.objects), f"{made.background} ground", *words])


STYLES = {
    "caption": caption,
    "detailed_caption": detailed_caption,
    "more_detailed_caption": more_detailed_caption,
    "tags": tags,
}


def description(thing: SceneObject) -> str:
    """`small brown dog`."""
    return f"{thing.size} {thing.emoji.colour} {thing.name}"


def grounding(made: Scene, task: Task, pick: int) -> SceneTarget:
    """Ground the whole caption, or one thing of it at every second pick."""
    asked = [made.objects[pick // 2 % len(made.objects)]] if pick % 2 else list(made.objects)
    phrases = [_phrase(thing) for thing in asked]
    return _said(made, task, phrases[0] if pick % 2 else caption(made), boxes(asked, phrases))


def boxes(things: list[SceneObject] | tuple[SceneObject, ...], labels: list[str]) -> dict[str, Any]:
    """Label the boxes of some things."""
    return {"bboxes": [list(thing.box) for thing in things], "labels": labels}


def mask(thing: SceneObject) -> dict[str, Any]:
    """Give a thing's outline as its one polygon."""
    return {"polygons": [[[side for corner in thing.outline for side in corner]]], "labels": [""]}


def _phrase(thing: SceneObject) -> str:
    return f"{'an' if thing.name[0] in 'aeio' or thing.name == 'umbrella' else 'a'} {thing.name}"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _with_word(made: Scene) -> str:
    return f", with the word {made.sign.word}" if made.sign else ""
