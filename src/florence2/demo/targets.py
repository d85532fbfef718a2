"""What is true of a scene, said for each of the fifteen tasks: input, wire text and structured answer.

Every wording is one fixed template. No three tokens in a row come twice in one text, since Florence-2 generates under
that rule. This file knows the tasks and the location codec, and no model.
"""

from dataclasses import dataclass
from typing import Any

from florence2.demo.scenes import Scene, Thing
from florence2.model.locations import write, write_region
from florence2.model.tasks import TASKS, Task, find_task

_NUMBERS = ("no", "one", "two", "three", "four")


@dataclass(frozen=True)
class Truth:
    """One question about a scene and its answer; `answer` is what `locations.read` gives, in pixels."""

    task: str
    input: str
    text: str
    answer: Any


def truth(made: Scene, task: str, pick: int = 0) -> Truth | None:
    """Say the truth of a scene for a task; `pick` chooses among the inputs there are, round and round.

    None where there is nothing to ask: the text in a region of a scene without a word.
    """
    row = find_task(task)
    thing = made.things[pick % len(made.things)]
    region = write_region(thing.box, made.size)
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
            return _said(made, row, "", boxes(made.things, [thing.name for thing in made.things]))
        case "dense_region_caption":
            return _said(made, row, "", boxes(made.things, [description(thing) for thing in made.things]))
        case "region_proposal":
            return _said(made, row, "", boxes(made.things, ["" for _ in made.things]))
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
            return _said(made, row, write_region(made.sign.box, made.size), made.sign.word)
    return None


def all_truths(made: Scene, pick: int = 0) -> list[Truth]:
    """Say the truth of a scene for every task that has one."""
    return [told for task in TASKS if (told := truth(made, task.token, pick))]


def _said(made: Scene, task: Task, asked: str, answer: Any) -> Truth:
    return Truth(task.token, asked, write(task, answer, made.size), answer)


def caption(made: Scene) -> str:
    """`a dog, a cat and an apple on a blue ground, with the word STOP`."""
    return f"{_listed([_phrase(thing) for thing in made.things])} on a {made.ground} ground{_with_word(made)}"


def detailed_caption(made: Scene) -> str:
    """`top left dog and right cat on a blue ground, with the word STOP at the bottom`."""
    things = _listed([f"{thing.place} {thing.name}" for thing in made.things])
    at = f" at the {made.sign.place}" if made.sign else ""
    return f"{things} on a {made.ground} ground{_with_word(made)}{at}"


def more_detailed_caption(made: Scene) -> str:
    """`The picture shows two things on a blue ground: top left small dog and right large cat.` and where a word is."""
    count = f"{_NUMBERS[len(made.things)]} thing{'s' * (len(made.things) > 1)}"
    things = _listed([f"{thing.place} {thing.size} {thing.name}" for thing in made.things])
    word = f" The word {made.sign.word} is at the {made.sign.place}." if made.sign else ""
    return f"The picture shows {count} on a {made.ground} ground: {things}.{word}"


def tags(made: Scene) -> str:
    """`dog, cat, blue ground, STOP`: a style the bundled model was not taught."""
    words = [made.sign.word] if made.sign else []
    return ", ".join([*(thing.name for thing in made.things), f"{made.ground} ground", *words])


STYLES = {
    "caption": caption,
    "detailed_caption": detailed_caption,
    "more_detailed_caption": more_detailed_caption,
    "tags": tags,
}


def description(thing: Thing) -> str:
    """`small brown dog`."""
    return f"{thing.size} {thing.emoji.colour} {thing.name}"


def grounding(made: Scene, task: Task, pick: int) -> Truth:
    """Ground the whole caption, or one thing of it at every second pick."""
    asked = [made.things[pick // 2 % len(made.things)]] if pick % 2 else list(made.things)
    phrases = [_phrase(thing) for thing in asked]
    return _said(made, task, phrases[0] if pick % 2 else caption(made), boxes(asked, phrases))


def boxes(things: list[Thing] | tuple[Thing, ...], labels: list[str]) -> dict[str, Any]:
    """Label the boxes of some things."""
    return {"bboxes": [list(thing.box) for thing in things], "labels": labels}


def mask(thing: Thing) -> dict[str, Any]:
    """Give a thing's outline as its one polygon."""
    return {"polygons": [[[side for corner in thing.outline for side in corner]]], "labels": [""]}


def _phrase(thing: Thing) -> str:
    return f"{'an' if thing.name[0] in 'aeio' or thing.name == 'umbrella' else 'a'} {thing.name}"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _with_word(made: Scene) -> str:
    return f", with the word {made.sign.word}" if made.sign else ""
