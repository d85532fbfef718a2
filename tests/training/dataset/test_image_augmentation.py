import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model import locations
from florence2.model.answer import Answer
from florence2.model.processing import Preprocessor
from florence2.model.tasks import find_task
from florence2.training.dataset.box_transforms import CropWindow, area, clip, transform_objects
from florence2.training.dataset.caption_augmentation import CaptionAugmentation
from florence2.training.dataset.florence2_dataset import Florence2Dataset, preview_text
from florence2.training.dataset.image_augmentation import (
    ImageAugmentation,
    augment_sample,
    augmentation_summary,
    can_flip,
    parse_image_augmentation,
)
from florence2.training.dataset.sampler import SampleDraw
from tests.tiny import tiny_processor

SIDE = 256
WHOLE = (SIDE, SIDE)


def said(task: str, target: Any, asked: Any = "", size: tuple[int, int] = WHOLE) -> Sample:
    """Make a sample about a picture that is not there."""
    found = find_task(task)
    text = (
        target
        if isinstance(target, str)
        else locations.encode(found, Answer.from_dict(target, found.output_type), size)
    )
    region = asked if isinstance(asked, str) else locations.encode_region(asked, size)
    return Sample("a.png", Path("a.png"), found.token, region, text)


def od(*boxes: Sequence[float], labels: Sequence[str] = ()) -> Sample:
    return said("od", {"bboxes": list(boxes), "labels": list(labels) or [f"cat{n}" for n in range(len(boxes))]})


def looks(sample: Sample, rules: ImageAugmentation, times: int = 100) -> list[tuple[Sample, CropWindow]]:
    return [augment_sample(sample, rules, random.Random(n)) for n in range(times)]


def test_boxes_move_with_what_they_show() -> None:
    """A coloured block is found, by its colour, where the moved box says."""
    box = (40, 60, 120, 200)
    image = Image.new("RGB", WHOLE, "white")
    image.paste((255, 0, 0), box)
    samples = [Sample("a.png", image, find_task("od").token, target=od(box).target)]
    rules = parse_image_augmentation(("hflip=0.5", "crop=0.5", "scale=0.7,1.4", "crop_min=0.5"))
    dataset = Florence2Dataset(samples, Preprocessor.from_processor(tiny_processor()), CaptionAugmentation(), rules)
    views = set()
    for epoch in range(60):
        sample, view = dataset.augmented(samples[0], SampleDraw(epoch, 0, 0))
        views.add((view.left < 0, view.flipped))
        pixels = dataset[SampleDraw(epoch, 0, 0)]["pixels_HWC"].astype(int)
        ys, xs = np.nonzero(pixels[..., 0] - pixels[..., 1] > 80)
        (found,) = locations.decode(find_task("od"), sample.target or "", (64, 64)).bboxes
        assert found == pytest.approx([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], abs=1.5), view
    assert len(views) == 4


def test_a_mirror_turns_every_kind_of_place() -> None:
    quad = [10.5, 20.5, 60.5, 22.5, 60.5, 40.5, 10.5, 38.5]
    value: dict[str, Any] = {"quad_boxes": [quad], "labels": ["A"]}
    assert transform_objects(value, CropWindow(flipped=True), 0.3)["quad_boxes"][0] == [
        939.5, 22.5, 989.5, 20.5, 989.5, 38.5, 939.5, 40.5,
    ]  # fmt: skip
    mask: dict[str, Any] = {"polygons": [[[10, 10, 50, 10, 10, 90]]], "labels": [""]}
    turned_mask = transform_objects(mask, CropWindow(flipped=True), 0.3)["polygons"][0][0]
    assert turned_mask == [990, 90, 950, 10, 990, 10]  # clockwise as before
    both = {"bboxes": [[1, 2, 3, 4]], "bboxes_labels": ["a"], "polygons": [], "polygons_labels": []}
    assert transform_objects(both, CropWindow(flipped=True), 0.3)["bboxes"] == [[997, 2, 999, 4]]


@given(st.lists(st.integers(0, 999), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_twice_mirrored_is_as_before(sides: list[int]) -> None:
    x1, x2, y1, y2 = (*sorted(sides[:2]), *sorted(sides[2:]))
    box = [x1 + 0.5, y1 + 0.5, x2 + 0.5, y2 + 0.5]
    value: dict[str, Any] = {"bboxes": [box], "labels": ["a"]}
    once = transform_objects(value, CropWindow(flipped=True), 0.3)
    assert transform_objects(once, CropWindow(flipped=True), 0.3) == value
    sample = said("od", value, size=(1000, 1000))
    back, _ = augment_sample(
        augment_sample(sample, ImageAugmentation(hflip=1), random.Random(0))[0],
        ImageAugmentation(hflip=1),
        random.Random(0),
    )
    assert back.target == sample.target


def test_what_leaves_is_dropped_and_what_is_cut_is_clipped() -> None:
    view = CropWindow(0.0, 0.0, 0.5, 1.0)
    value = {
        "bboxes": [[100, 0, 300, 100], [400, 0, 600, 100], [480, 0, 900, 100], [700, 0, 800, 100]],
        "labels": ["in", "half", "a bit", "out"],
    }
    moved = transform_objects(value, view, keep=0.3)
    assert moved["labels"] == ["in", "half"]
    assert moved["bboxes"] == [[200, 0, 600, 100], [800, 0, 1000, 100]]
    quads = {"quad_boxes": [[400, 0, 600, 0, 600, 9, 400, 9], [0, 0, 9, 0, 9, 9, 0, 9]], "labels": ["cut", "in"]}
    assert transform_objects(quads, view, keep=0.3)["labels"] == ["in"]  # half a line cannot be read


def test_polygons_are_cut_at_the_edge() -> None:
    assert clip([0, 0, 100, 0, 100, 50]) == [0, 0, 100, 0, 100, 50]
    assert area(clip([-100, -100, 100, -100, 100, 100, -100, 100])) == pytest.approx(100 * 100)
    assert clip([-50, 10, -10, 10, -10, 90]) == []
    halves: dict[str, Any] = {"polygons": [[[300, 0, 700, 0, 700, 400, 300, 400]]], "labels": [""]}
    (kept,) = transform_objects(halves, CropWindow(0, 0, 0.5, 1), keep=0.3)["polygons"]
    assert area(kept[0]) == pytest.approx(400 * 400)  # 200 x 400, twice as wide
    assert transform_objects(halves, CropWindow(0, 0, 0.5, 1), keep=0.6)["polygons"] == []


def test_regions_move_with_their_image_or_keep_it_whole() -> None:
    sample = said("region_to_category", "cat", [10, 10, 60, 60])
    seen = looks(sample, ImageAugmentation(crop=1, crop_min=0.3, hflip=0.5))
    assert len({each.input for each, _ in seen}) > 50
    assert {each.target for each, _ in seen} == {"cat"}
    for each, view in seen:
        if view.is_full_image and not view.flipped:
            assert each.input == sample.input
    for each, view in looks(said("region_to_ocr", "EXIT", [10, 10, 60, 60]), ImageAugmentation(crop=1, crop_min=0.3)):
        x1, y1, x2, y2 = locations.decode(find_task("region_proposal"), each.input, (1, 1)).bboxes[0]
        wide, high = (x2 - x1) * (view.right - view.left), (y2 - y1) * (view.bottom - view.top)
        assert (wide, high) == pytest.approx((50 / SIDE, 50 / SIDE), abs=0.003)  # never cut: it is read


def test_segmentation_of_a_region_moves_both() -> None:
    outline = {"polygons": [[[10, 10, 60, 10, 60, 60, 10, 60]]], "labels": [""]}
    sample = said("region_to_segmentation", outline, [10, 10, 60, 60])
    for each, _ in looks(sample, ImageAugmentation(crop=1, hflip=0.5, scale=(0.6, 1.5))):
        box = locations.decode(find_task("region_proposal"), each.input, WHOLE).bboxes[0]
        run = locations.decode(find_task(each.task), each.target or "", WHOLE).polygons[0][0]
        assert [min(run[::2]), min(run[1::2]), max(run[::2]), max(run[1::2])] == pytest.approx(box, abs=0.6)


def test_no_crop_empties_an_answer() -> None:
    sample = od([20, 20, 60, 60])
    seen = looks(sample, ImageAugmentation(crop=1, crop_min=0.3))
    assert all("cat0" in (each.target or "") for each, _ in seen)
    assert 0 < sum(view.is_full_image for _, view in seen) < 50  # some windows had no luck, and were not taken
    nothing = said("od", "")
    assert any(not view.is_full_image for _, view in looks(nothing, ImageAugmentation(crop=1)))


@pytest.mark.parametrize(
    ("task", "target", "asked", "may"),
    [
        ("caption", "a dog and a cat", "", True),
        ("caption", "a dog to the left of a cat", "", False),
        ("caption", "The RIGHT hand.", "", False),
        ("caption", "a bright knight", "", True),  # no word of its own
        ("caption", "a shop named “Rosa”", "", False),
        ("caption", "a shield that says no", "", False),
        ("dense_region_caption", "left shoe<loc_1><loc_2><loc_3><loc_4>", "", False),
        ("od", "shoe<loc_1><loc_2><loc_3><loc_4>", "", True),
        ("caption_to_phrase_grounding", "a cup<loc_1><loc_2><loc_3><loc_4>", "a cup on the right", False),
        ("ocr", "EXIT", "", False),
        ("ocr_with_region", "EXIT<loc_1><loc_2><loc_3><loc_4><loc_1><loc_2><loc_3><loc_4>", "", False),
        ("region_to_ocr", "EXIT", "<loc_1><loc_2><loc_3><loc_4>", False),
        ("What is it?", "a cat", "", False),  # who knows what a prompt of one's own is about
    ],
)
def test_words_that_a_mirror_makes_untrue(task: str, target: str, asked: str, may: bool) -> None:
    sample = said(task, target, asked)
    assert can_flip(sample) is may
    assert any(view.flipped for _, view in looks(sample, ImageAugmentation(hflip=0.9), 20)) is may


def test_words_about_a_whole_image_are_never_cropped() -> None:
    rules = ImageAugmentation(crop=1, scale=(0.5, 2.0))
    for each, view in looks(said("caption", "a dog and a cat"), rules):
        assert view.left <= 0 and view.top <= 0 and view.right >= 1 and view.bottom >= 1  # noqa: PT018
        assert each.target == "a dog and a cat"
    assert any(not view.is_full_image for _, view in looks(said("caption", "a dog"), rules))  # smaller it may be


@pytest.mark.parametrize(
    "sample",
    [
        said("od", "there are two: cat<loc_1><loc_2><loc_3><loc_4> and that is all"),
        said("What is at <loc_1><loc_2><loc_3><loc_4>?", "a cat"),
        said("caption", "cat <loc_1><loc_2><loc_3><loc_4>"),
        said("region_to_category", "cat", "somewhere"),
    ],
)
def test_places_that_are_not_understood_stay(sample: Sample) -> None:
    for each, view in looks(sample, ImageAugmentation(hflip=1, crop=1, scale=(0.5, 2.0), order="shuffle"), 20):
        assert not view.is_changed
        assert (each.input, each.target) == (sample.input, sample.target)


def test_objects_are_learnt_in_reading_order_or_shuffled() -> None:
    sample = od([10, 10, 50, 50], [100, 10, 150, 50], [10, 100, 50, 150])
    mirrored, _ = augment_sample(sample, ImageAugmentation(hflip=1), random.Random(0))
    assert locations.decode(find_task("od"), mirrored.target or "", WHOLE).labels == ["cat1", "cat0", "cat2"]
    orders = {each.target for each, _ in looks(sample, ImageAugmentation(order="shuffle"))}
    assert len(orders) == 6
    phrases = {"bboxes": [[10, 10, 50, 50], [100, 10, 150, 50]], "labels": ["a dog", "a cat"]}
    asked = said("caption_to_phrase_grounding", phrases, "a dog and a cat")
    for each, _ in looks(asked, ImageAugmentation(hflip=0.5, order="shuffle")):
        assert locations.decode(find_task(each.task), each.target or "", WHOLE).labels == ["a dog", "a cat"]


def test_a_turn_depends_on_seed_epoch_and_sample_alone_and_measuring_sees_all_whole() -> None:
    samples = [od([10, 10, 50, 50]), said("region_to_category", "cat", [10, 10, 50, 50])]
    rules = parse_image_augmentation(("hflip=0.5", "crop=0.9", "scale=0.8,1.2"))
    dataset = Florence2Dataset(
        samples, Preprocessor.from_processor(tiny_processor()), CaptionAugmentation(), rules, seed=1
    )
    again = Florence2Dataset(samples, dataset.preprocessor, CaptionAugmentation(), rules, seed=1)
    first = [dataset.augmented(sample, SampleDraw(2, n, n)) for n, sample in enumerate(samples)]
    random.seed(99)
    later = [again.augmented(sample, SampleDraw(2, 7 + n, n)) for n, sample in enumerate(samples)]
    assert [(a.input, a.target, view) for a, view in first] == [(a.input, a.target, view) for a, view in later]
    assert len({dataset.augmented(samples[0], SampleDraw(epoch, 0, 0))[1] for epoch in range(20)}) > 15
    assert len({dataset.augmented(samples[0], SampleDraw(0, 0, 0, again))[1] for again in range(20)}) > 15
    fixed = Florence2Dataset(samples, dataset.preprocessor, CaptionAugmentation(), rules, fixed=True)
    assert not any(
        fixed.augmented(sample, SampleDraw(epoch, 0, 0))[1].is_changed for sample in samples for epoch in range(20)
    )


def test_preview_and_introduction_say_what_is_seen() -> None:
    samples = [od([10, 10, 50, 50]), said("caption", "a dog"), said("ocr", "EXIT")]
    rules = parse_image_augmentation(("hflip=1", "crop=1"))
    text = preview_text(
        Florence2Dataset(samples, Preprocessor.from_processor(tiny_processor()), CaptionAugmentation(), rules), 1
    )
    assert "epoch 1 (mirrored, x " in text
    assert augmentation_summary(samples, rules) == (
        "2 of 3 may be mirrored (the others speak of sides or of writing), "
        "1 of 3 may be cropped (the others speak of whole pictures)"
    )


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("hflp=0.5", "did you mean `hflip`?"),
        ("hflip=2", "write for example `hflip=0.5`"),
        ("crop=often", "write for example `crop=0.5`"),
        ("crop_min=0", "write for example `crop_min=0.6`"),
        ("scale=2", "write for example `scale=0.8,1.2`"),
        ("scale=1.2,0.8", "write for example `scale=0.8,1.2`"),
        ("order=random", "write `order=shuffle` or `order=reading`"),
        ("hflip", "write `--augment hflip=...`"),
    ],
)
def test_refused(word: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_image_augmentation((word,))
    assert caught.value.hint == hint
