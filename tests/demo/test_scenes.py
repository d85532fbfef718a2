"""Scenes and their targets: determinism, annotations that match the pixels, and the dataset on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2.demo.dataset import make_dataset
from florence2.demo.scenes import Scene, make_scene
from florence2.demo.sheet import all_emoji
from florence2.demo.targets import STYLES, all_targets, definite_phrase, phrase, scene_target
from florence2.errors import UserError
from florence2.model.locations import clean_text, decode
from florence2.model.tasks import TASKS, find_task

SEEDS = range(300)


def boxes_of(scene: Scene) -> list[tuple[float, float, float, float]]:
    return [obj.box for obj in scene.objects] + ([scene.sign.box] if scene.sign else [])


def test_seed_determines_scene_and_image():
    assert make_scene(3) == make_scene(3)
    assert make_scene(3) != make_scene(4)
    assert make_scene(3).render().tobytes() == make_scene(3).render().tobytes()


def test_objects_of_a_scene_are_distinct_and_ordered():
    counts = set()
    for scene in map(make_scene, SEEDS):
        counts.add(len(scene.objects))
        names, positions = [obj.name for obj in scene.objects], [obj.position for obj in scene.objects]
        positions += [scene.sign.position] if scene.sign else []
        assert len(set(names)) == len(names)
        assert len(set(positions)) == len(positions)
        lefts = [obj.box[0] for obj in scene.objects]
        assert lefts == sorted(lefts)
        boxes = boxes_of(scene)
        for i, a in enumerate(boxes):
            assert 0 <= a[0] < a[2] <= scene.size[0]
            assert 0 <= a[1] < a[3] <= scene.size[1]
            assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for b in boxes[i + 1 :])
    assert counts == {1, 2, 3, 4}


def test_emoji_names_are_distinct_single_words():
    names = [emoji.name for emoji in all_emoji()]
    assert len(set(names)) == len(names) >= 64
    assert all(name.isalpha() for name in names)


def test_boxes_enclose_the_ink():
    for seed in range(40):
        scene = make_scene(seed)
        ground = Scene(scene.seed, scene.size, scene.background, (), None).render()
        is_ink = (np.asarray(scene.render(), int) - np.asarray(ground, int)).__abs__().sum(-1) > 24
        is_inside = np.zeros_like(is_ink)
        for box in boxes_of(scene):
            crop = is_ink[box[1] : box[3], box[0] : box[2]]
            is_inside[box[1] : box[3], box[0] : box[2]] = True
            assert crop.any(axis=0).mean() > 0.7  # ink from side to side
            assert crop.any(axis=1).mean() > 0.8
        assert not (is_ink & ~is_inside).any()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_target_text_decodes_to_the_answer(task):
    num_targets = 0
    for scene in map(make_scene, range(40)):
        target = scene_target(scene, task.token, num_targets)
        if target is None:
            assert scene.sign is None
            continue
        num_targets += 1
        task.format_prompt(target.input)
        if isinstance(target.answer, str):
            assert clean_text(target.text) == target.answer
            continue
        answer = decode(find_task(target.task), target.text, scene.size)
        assert (len(answer), answer.labels) == (len(target.answer), target.answer.labels)
        for item, expected in zip(answer, target.answer, strict=True):
            assert item.kind is expected.kind
            assert np.allclose(np.ravel(item.rings), np.ravel(expected.rings), atol=max(scene.size) / 1000)
    assert num_targets > 5


def test_every_caption_style_names_objects_word_and_ground():
    scene = next(scene for scene in map(make_scene, SEEDS) if len(scene.objects) == 3 and scene.sign)
    names = [obj.name for obj in scene.objects]
    for write_caption in STYLES.values():
        text = write_caption(scene)
        assert [word for word in text.replace(",", "").replace(".", "").split() if word in names] == names
        assert scene.sign.word in text
        assert scene.background in text


def test_phrases_are_english():
    scenes = list(map(make_scene, range(1500)))
    phrases = {obj.name: (phrase(obj), definite_phrase(obj)) for scene in scenes for obj in scene.objects}
    assert phrases.keys() == {emoji.name for emoji in all_emoji()}
    expected = {
        "grapes": ("grapes", "the grapes"),
        "cherries": ("cherries", "the cherries"),
        "broccoli": ("broccoli", "the broccoli"),
        "corn": ("an ear of corn", "the ear of corn"),
    }
    vowels = ("owl", "octopus", "apple", "eggplant", "egg", "airplane", "umbrella")
    for name, found in phrases.items():
        article = "an" if name in vowels else "a"  # "a unicorn"
        assert found == expected.get(name, (f"{article} {name}", f"the {name}"))


def test_dataset_has_images_captions_and_a_jsonl_for_each_task(tmp_path: Path):
    folder = make_dataset(tmp_path / "set", 5, seed=20, style="tags")
    images = sorted(folder.glob("*.png"))
    assert len(images) == 5
    for i, file in enumerate(images):
        scene = make_scene(20 + i)
        with Image.open(file) as image:
            assert image.size == scene.size
        assert file.with_suffix(".txt").read_text().strip() == STYLES["tags"](scene)
    rows = [json.loads(line) for line in (folder / "od.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [scene_target(make_scene(20 + i), "od").text for i in range(5)]
    assert {file.stem for file in folder.glob("*.jsonl")} >= {
        find_task(target.task).name for target in all_targets(make_scene(20))
    }


def test_unknown_caption_style_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="unknown caption style `haiku`"):
        make_dataset(tmp_path, 1, style="haiku")


def test_empty_dataset_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="cannot have 0 images"):
        make_dataset(tmp_path, 0)
