"""The targets of a scene for each of the fifteen tasks: input, text with location tokens, and decoded answer.

Every text follows a fixed template. No text repeats three tokens in a row, because Florence-2's generation config
forbids it. This file does not depend on any model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from florence2.demo.scenes import Scene, SceneObject
from florence2.model.answer import Answer, AnswerItem
from florence2.model.locations import encode, encode_region
from florence2.model.tasks import TASKS, OutputType, Task, find_task

# The names that have no singular with "a" or "an".
_PHRASES = {"grapes": "grapes", "cherries": "cherries", "broccoli": "broccoli", "corn": "an ear of corn"}
_NUMBERS = ("no", "one", "two", "three", "four")


@dataclass(frozen=True)
class SceneTarget:
    """One input of a task about a scene, and its target; `answer` is a text, or positions in pixels."""

    task: str
    input: str
    text: str
    answer: str | Answer


def scene_target(scene: Scene, task: str, index: int = 0) -> SceneTarget | None:
    """Return the target of a task; `index` selects one of the task's inputs for the scene, modulo their number.

    Returns None where there is no input: the text of a region in a scene without a word.
    """
    row = find_task(task)
    obj = scene.objects[index % len(scene.objects)]
    region = encode_region(obj.box, scene.size)
    match row.name:
        case "caption":
            return _target(scene, row, "", caption(scene))
        case "detailed_caption":
            return _target(scene, row, "", detailed_caption(scene))
        case "more_detailed_caption":
            return _target(scene, row, "", more_detailed_caption(scene))
        case "ocr":
            return _target(scene, row, "", scene.sign.word if scene.sign else "")
        case "ocr_with_region":
            signs = [scene.sign] if scene.sign else []
            quads = tuple(AnswerItem.quad(sign.quad, sign.word) for sign in signs)
            return _target(scene, row, "", Answer(row.output_type, quads))
        case "od":
            return _target(scene, row, "", labeled_boxes(scene.objects, [each.name for each in scene.objects]))
        case "dense_region_caption":
            return _target(scene, row, "", labeled_boxes(scene.objects, [description(each) for each in scene.objects]))
        case "region_proposal":
            return _target(scene, row, "", labeled_boxes(scene.objects, ["" for _ in scene.objects]))
        case "caption_to_phrase_grounding":
            return _grounding_target(scene, row, index)
        case "open_vocabulary_detection":
            return _target(scene, row, obj.name, Answer(row.output_type, (AnswerItem.box(obj.box, obj.name),)))
        case "referring_expression_segmentation":
            return _target(scene, row, definite_phrase(obj), mask(obj))
        case "region_to_segmentation":
            return _target(scene, row, region, mask(obj))
        case "region_to_category":
            return _target(scene, row, region, obj.name)
        case "region_to_description":
            return _target(scene, row, region, description(obj))
        case "region_to_ocr" if scene.sign:
            return _target(scene, row, encode_region(scene.sign.box, scene.size), scene.sign.word)
    return None


def all_targets(scene: Scene, index: int = 0) -> list[SceneTarget]:
    """Return the targets of a scene for every task that has one."""
    return [target for task in TASKS if (target := scene_target(scene, task.token, index))]


def _target(scene: Scene, task: Task, task_input: str, answer: str | Answer) -> SceneTarget:
    text = answer if isinstance(answer, str) else encode(task, answer, scene.size)
    return SceneTarget(task.token, task_input, text, answer)


def _grounding_target(scene: Scene, task: Task, index: int) -> SceneTarget:
    """Return the target for the whole caption, or for one phrase of it at every odd index."""
    objects = [scene.objects[index // 2 % len(scene.objects)]] if index % 2 else list(scene.objects)
    phrases = [phrase(obj) for obj in objects]
    return _target(scene, task, phrases[0] if index % 2 else caption(scene), labeled_boxes(objects, phrases))


def caption(scene: Scene) -> str:
    """`a dog, a cat and an apple on a blue ground, with the word STOP`."""
    return f"{_join([phrase(obj) for obj in scene.objects])} on a {scene.background} ground{_word_clause(scene)}"


def detailed_caption(scene: Scene) -> str:
    """`top left dog and right cat on a blue ground, with the word STOP at the bottom`."""
    objects = _join([f"{obj.position} {obj.name}" for obj in scene.objects])
    sign_position = f" at the {scene.sign.position}" if scene.sign else ""
    return f"{objects} on a {scene.background} ground{_word_clause(scene)}{sign_position}"


def more_detailed_caption(scene: Scene) -> str:
    """`The picture shows two things on a blue ground: top left small dog and right large cat.` and where a word is."""
    count = f"{_NUMBERS[len(scene.objects)]} thing{'s' * (len(scene.objects) > 1)}"
    objects = _join([f"{obj.position} {obj.size} {obj.name}" for obj in scene.objects])
    word = f" The word {scene.sign.word} is at the {scene.sign.position}." if scene.sign else ""
    return f"The picture shows {count} on a {scene.background} ground: {objects}.{word}"


def tags(scene: Scene) -> str:
    """`dog, cat, blue ground, STOP`: a style that the bundled model was not trained on."""
    words = [scene.sign.word] if scene.sign else []
    return ", ".join([*(obj.name for obj in scene.objects), f"{scene.background} ground", *words])


STYLES = {
    "caption": caption,
    "detailed_caption": detailed_caption,
    "more_detailed_caption": more_detailed_caption,
    "tags": tags,
}


def description(obj: SceneObject) -> str:
    """`small brown dog`."""
    return f"{obj.size} {obj.emoji.colour} {obj.name}"


def phrase(obj: SceneObject) -> str:
    """`a dog`, `an apple`, `grapes`, `an ear of corn`."""
    article = "an" if obj.name[0] in "aeio" or obj.name == "umbrella" else "a"
    return _PHRASES.get(obj.name, f"{article} {obj.name}")


def definite_phrase(obj: SceneObject) -> str:
    """`the dog`, `the apple`, `the grapes`, `the ear of corn`."""
    return f"the {phrase(obj).removeprefix('an ').removeprefix('a ')}"


def labeled_boxes(objects: Sequence[SceneObject], labels: Sequence[str]) -> Answer:
    """Return the boxes of objects with labels."""
    items = (AnswerItem.box(obj.box, label) for obj, label in zip(objects, labels, strict=True))
    return Answer(OutputType.BOXES, tuple(items))


def mask(obj: SceneObject) -> Answer:
    """Return the outline of an object as one polygon."""
    polygon = [coordinate for corner in obj.outline for coordinate in corner]
    return Answer(OutputType.POLYGONS, (AnswerItem.mask([polygon]),))


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _word_clause(scene: Scene) -> str:
    return f", with the word {scene.sign.word}" if scene.sign else ""
