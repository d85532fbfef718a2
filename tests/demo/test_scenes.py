"""The demo's world: pure, clear, and what it says is true of its pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2.demo.dataset import make_dataset
from florence2.demo.scenes import make_scene
from florence2.demo.sheet import all_emoji
from florence2.demo.targets import STYLES, all_targets, scene_target
from florence2.errors import UserError
from florence2.model.locations import decode
from florence2.model.tasks import TASKS, find_task

SEEDS = range(300)


def test_a_seed_gives_one_scene_and_one_image():
    assert make_scene(3) == make_scene(3)
    assert make_scene(3) != make_scene(4)
    assert make_scene(3).render().tobytes() == make_scene(3).render().tobytes()


def test_things_are_told_apart():
    counts = set()
    for made in map(make_scene, SEEDS):
        counts.add(len(made.objects))
        names, places = [thing.name for thing in made.objects], [thing.place for thing in made.objects]
        places += [made.sign.place] if made.sign else []
        assert len(set(names)) == len(names)
        assert len(set(places)) == len(places)
        lefts = [thing.box[0] for thing in made.objects]
        assert lefts == sorted(lefts)
        boxes = [thing.box for thing in made.objects] + ([made.sign.box] if made.sign else [])
        for i, a in enumerate(boxes):
            assert 0 <= a[0] < a[2] <= made.size[0]
            assert 0 <= a[1] < a[3] <= made.size[1]
            assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for b in boxes[i + 1 :])
    assert counts == {1, 2, 3, 4}


def test_names_are_many_single_words():
    names = [emoji.name for emoji in all_emoji()]
    assert len(set(names)) == len(names) >= 64
    assert all(name.isalpha() for name in names)


def test_boxes_hold_the_ink():
    for seed in range(40):
        made = make_scene(seed)
        bare = make_scene(seed).__class__(made.seed, made.size, made.background, (), None).render()
        changed = (np.asarray(made.render(), int) - np.asarray(bare, int)).__abs__().sum(-1) > 24
        inside = np.zeros_like(changed)
        for box in [thing.box for thing in made.objects] + ([made.sign.box] if made.sign else []):
            part = changed[box[1] : box[3], box[0] : box[2]]
            inside[box[1] : box[3], box[0] : box[2]] = True
            assert part.any(axis=0).mean() > 0.7  # ink from side to side
            assert part.any(axis=1).mean() > 0.8
        assert not (changed & ~inside).any()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_wire_text_reads_as_the_answer(task):
    asked = 0
    for made in map(make_scene, range(40)):
        told = scene_target(made, task.token, asked)
        if told is None:
            assert made.sign is None
            continue
        asked += 1
        task.format_prompt(told.input)
        value = decode(find_task(told.task), told.text, made.size)
        if isinstance(told.answer, str):
            assert value == told.answer
            continue
        assert value.keys() == told.answer.keys()
        for key, wanted in told.answer.items():
            if "labels" in key:
                assert value[key] == wanted
            else:
                assert np.allclose(np.ravel(value[key]), np.ravel(wanted), atol=max(made.size) / 1000)
    assert asked > 5


def test_captions_read_well():
    made = next(made for made in map(make_scene, SEEDS) if len(made.objects) == 3 and made.sign)
    names = [thing.name for thing in made.objects]
    for say in STYLES.values():
        text = say(made)
        assert [word for word in text.replace(",", "").replace(".", "").split() if word in names] == names
        assert made.sign.word in text
        assert made.background in text


def test_data_set_holds_images_captions_and_tasks(tmp_path: Path):
    import json

    folder = make_dataset(tmp_path / "set", 5, seed=20, style="tags")
    images = sorted(folder.glob("*.png"))
    assert len(images) == 5
    for i, file in enumerate(images):
        made = make_scene(20 + i)
        with Image.open(file) as image:
            assert image.size == made.size
        assert file.with_suffix(".txt").read_text().strip() == STYLES["tags"](made)
    rows = [json.loads(line) for line in (folder / "od.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [scene_target(make_scene(20 + i), "od").text for i in range(5)]
    assert {file.stem for file in folder.glob("*.jsonl")} >= {
        find_task(t.task).name for t in all_targets(make_scene(20))
    }


def test_unknown_style_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no caption style"):
        make_dataset(tmp_path, 1, style="haiku")
