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
from florence2.training.dataset.box_transforms import CropWindow, transform_answer
from florence2.training.dataset.florence2_dataset import Florence2Dataset, preview_lines
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
SIZE = (SIDE, SIDE)


def make_sample(task_name: str, target: Any, task_input: Any = "", size: tuple[int, int] = SIZE) -> Sample:
    """Make a sample whose image does not exist."""
    task = find_task(task_name)
    if not isinstance(target, str):
        target = locations.encode(task, Answer.from_dict(target, task.output_type), size)
    region = task_input if isinstance(task_input, str) else locations.encode_region(task_input, size)
    return Sample("a.png", Path("a.png"), task.token, region, target)


def detection_sample(*boxes: Sequence[float]) -> Sample:
    return make_sample("od", {"bboxes": list(boxes), "labels": [f"cat{n}" for n in range(len(boxes))]})


def augment_many(sample: Sample, augmentation: ImageAugmentation, number: int = 100) -> list[tuple[Sample, CropWindow]]:
    return [augment_sample(sample, augmentation, random.Random(n)) for n in range(number)]


def transform(value: dict[str, Any], window: CropWindow, min_visible: float = 0.3) -> dict[str, Any]:
    return transform_answer(Answer.from_dict(value), window, min_visible).to_dict()


def test_boxes_follow_the_augmented_image() -> None:
    """A coloured rectangle is found, by its colour, at the augmented box."""
    box = (40, 60, 120, 200)
    image = Image.new("RGB", SIZE, "white")
    image.paste((255, 0, 0), box)
    samples = [Sample("a.png", image, find_task("od").token, target=detection_sample(box).target)]
    augmentation = parse_image_augmentation(("hflip=0.5", "crop=0.5", "scale=0.7,1.4", "crop_min=0.5"))
    preprocessor = Preprocessor.from_processor(tiny_processor())
    dataset = Florence2Dataset(samples, preprocessor, image_augmentation=augmentation)
    kinds = set()
    for epoch in range(60):
        sample, window = dataset.augmented(samples[0], SampleDraw(epoch, 0, 0))
        kinds.add((window.left < 0, window.is_flipped))
        pixels = dataset[SampleDraw(epoch, 0, 0)]["pixels_HWC"].astype(int)
        ys, xs = np.nonzero(pixels[..., 0] - pixels[..., 1] > 80)
        (augmented_box,) = locations.decode(find_task("od"), sample.target or "", (64, 64)).bboxes
        expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert augmented_box == pytest.approx(expected, abs=1.5), window
    assert len(kinds) == 4


def test_flip_mirrors_boxes_quads_and_polygons() -> None:
    quad = [10.5, 20.5, 60.5, 22.5, 60.5, 40.5, 10.5, 38.5]
    flip = CropWindow(is_flipped=True)
    assert transform({"quad_boxes": [quad], "labels": ["A"]}, flip)["quad_boxes"][0] == [
        939.5, 22.5, 989.5, 20.5, 989.5, 38.5, 939.5, 40.5,
    ]  # fmt: skip
    polygon = transform({"polygons": [[[10, 10, 50, 10, 10, 90]]], "labels": [""]}, flip)["polygons"][0][0]
    assert polygon == [990, 90, 950, 10, 990, 10]  # clockwise as before
    both = {"bboxes": [[1, 2, 3, 4]], "bboxes_labels": ["a"], "polygons": [], "polygons_labels": []}
    assert transform(both, flip)["bboxes"] == [[997, 2, 999, 4]]


@given(st.lists(st.integers(0, 999), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_flipping_twice_restores_the_sample(coordinates: list[int]) -> None:
    x1, x2, y1, y2 = (*sorted(coordinates[:2]), *sorted(coordinates[2:]))
    box = [x1 + 0.5, y1 + 0.5, x2 + 0.5, y2 + 0.5]
    value: dict[str, Any] = {"bboxes": [box], "labels": ["a"]}
    once = transform(value, CropWindow(is_flipped=True))
    assert transform(once, CropWindow(is_flipped=True)) == value
    sample, flip = make_sample("od", value, size=(1000, 1000)), ImageAugmentation(hflip=1)
    flipped, _ = augment_sample(sample, flip, random.Random(0))
    restored, _ = augment_sample(flipped, flip, random.Random(0))
    assert restored.target == sample.target


def test_crop_removes_objects_outside_and_clips_objects_at_the_edge() -> None:
    window = CropWindow(0.0, 0.0, 0.5, 1.0)
    value = {
        "bboxes": [[100, 0, 300, 100], [400, 0, 600, 100], [480, 0, 900, 100], [700, 0, 800, 100]],
        "labels": ["inside", "half inside", "hardly inside", "outside"],
    }
    cropped = transform(value, window)
    assert cropped["labels"] == ["inside", "half inside"]
    assert cropped["bboxes"] == [[200, 0, 600, 100], [800, 0, 1000, 100]]
    quads = {"quad_boxes": [[400, 0, 600, 0, 600, 9, 400, 9], [0, 0, 9, 0, 9, 9, 0, 9]], "labels": ["cut", "inside"]}
    assert transform(quads, window)["labels"] == ["inside"]  # half a line of text is unreadable


def test_crop_clips_polygons() -> None:
    square: dict[str, Any] = {"polygons": [[[300, 0, 700, 0, 700, 400, 300, 400]]], "labels": [""]}
    window = CropWindow(0, 0, 0.5, 1)
    (item,) = transform_answer(Answer.from_dict(square), window, min_visible=0.3)
    assert item.area == pytest.approx(400 * 400)  # 200 x 400, scaled to twice the width
    assert len(transform_answer(Answer.from_dict(square), window, min_visible=0.6)) == 0


def test_input_regions_follow_the_crop_and_text_regions_are_not_cut() -> None:
    sample = make_sample("region_to_category", "cat", [10, 10, 60, 60])
    augmented = augment_many(sample, ImageAugmentation(crop=1, crop_min=0.3, hflip=0.5))
    assert len({each.input for each, _ in augmented}) > 50
    assert {each.target for each, _ in augmented} == {"cat"}
    assert all(each.input == sample.input for each, window in augmented if window.is_identity)
    text_sample = make_sample("region_to_ocr", "EXIT", [10, 10, 60, 60])
    for each, window in augment_many(text_sample, ImageAugmentation(crop=1, crop_min=0.3)):
        x1, y1, x2, y2 = locations.decode(find_task("region_proposal"), each.input, (1, 1)).bboxes[0]
        size = (x2 - x1) * (window.right - window.left), (y2 - y1) * (window.bottom - window.top)
        assert size == pytest.approx((50 / SIDE, 50 / SIDE), abs=0.003)


def test_region_and_its_mask_follow_the_same_window() -> None:
    mask = {"polygons": [[[10, 10, 60, 10, 60, 60, 10, 60]]], "labels": [""]}
    sample = make_sample("region_to_segmentation", mask, [10, 10, 60, 60])
    for each, _ in augment_many(sample, ImageAugmentation(crop=1, hflip=0.5, scale=(0.6, 1.5))):
        box = locations.decode(find_task("region_proposal"), each.input, SIZE).bboxes[0]
        polygon = locations.decode(find_task(each.task), each.target or "", SIZE).polygons[0][0]
        bounds = [min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])]
        assert bounds == pytest.approx(box, abs=0.6)


def test_crop_never_removes_all_objects() -> None:
    augmented = augment_many(detection_sample([20, 20, 60, 60]), ImageAugmentation(crop=1, crop_min=0.3))
    assert all("cat0" in (each.target or "") for each, _ in augmented)
    assert 0 < sum(window.is_full_image for _, window in augmented) < 50  # where no crop shows the object
    without_objects = augment_many(make_sample("od", ""), ImageAugmentation(crop=1))
    assert any(not window.is_full_image for _, window in without_objects)


@pytest.mark.parametrize(
    ("task_name", "target", "task_input", "is_flippable"),
    [
        ("caption", "a dog and a cat", "", True),
        ("caption", "a dog to the left of a cat", "", False),
        ("caption", "The RIGHT hand.", "", False),
        ("caption", "a bright knight", "", True),  # `right` inside another word
        ("caption", "a shop named “Rosa”", "", False),
        ("caption", "a shield that says no", "", False),
        ("dense_region_caption", "left shoe<loc_1><loc_2><loc_3><loc_4>", "", False),
        ("od", "shoe<loc_1><loc_2><loc_3><loc_4>", "", True),
        ("caption_to_phrase_grounding", "a cup<loc_1><loc_2><loc_3><loc_4>", "a cup on the right", False),
        ("ocr", "EXIT", "", False),
        ("ocr_with_region", "EXIT<loc_1><loc_2><loc_3><loc_4><loc_1><loc_2><loc_3><loc_4>", "", False),
        ("region_to_ocr", "EXIT", "<loc_1><loc_2><loc_3><loc_4>", False),
        ("What is it?", "a cat", "", False),  # a custom prompt may ask about sides
    ],
)
def test_samples_that_mention_sides_or_writing_are_not_flipped(
    task_name: str, target: str, task_input: str, is_flippable: bool
) -> None:
    sample = make_sample(task_name, target, task_input)
    assert can_flip(sample) is is_flippable
    augmented = augment_many(sample, ImageAugmentation(hflip=0.9), 20)
    assert any(window.is_flipped for _, window in augmented) is is_flippable


def test_images_with_captions_are_scaled_down_but_never_cropped() -> None:
    augmented = augment_many(make_sample("caption", "a dog and a cat"), ImageAugmentation(crop=1, scale=(0.5, 2.0)))
    for each, window in augmented:
        assert max(window.left, window.top) <= 0
        assert min(window.right, window.bottom) >= 1
        assert each.target == "a dog and a cat"
    assert any(not window.is_full_image for _, window in augmented)


@pytest.mark.parametrize(
    "sample",
    [
        make_sample("od", "there are two: cat<loc_1><loc_2><loc_3><loc_4> and that is all"),
        make_sample("What is at <loc_1><loc_2><loc_3><loc_4>?", "a cat"),
        make_sample("caption", "cat <loc_1><loc_2><loc_3><loc_4>"),
        make_sample("region_to_category", "cat", "somewhere"),
    ],
)
def test_samples_with_unexpected_location_tokens_are_not_augmented(sample: Sample) -> None:
    augmentation = ImageAugmentation(hflip=1, crop=1, scale=(0.5, 2.0), order="shuffle")
    for each, window in augment_many(sample, augmentation, 20):
        assert window.is_identity
        assert (each.input, each.target) == (sample.input, sample.target)


def test_objects_are_in_reading_order_or_shuffled() -> None:
    sample = detection_sample([10, 10, 50, 50], [100, 10, 150, 50], [10, 100, 50, 150])
    flipped, _ = augment_sample(sample, ImageAugmentation(hflip=1), random.Random(0))
    assert locations.decode(find_task("od"), flipped.target or "", SIZE).labels == ["cat1", "cat0", "cat2"]
    assert len({each.target for each, _ in augment_many(sample, ImageAugmentation(order="shuffle"))}) == 6


def test_phrases_keep_the_order_of_their_sentence() -> None:
    phrases = {"bboxes": [[10, 10, 50, 50], [100, 10, 150, 50]], "labels": ["a dog", "a cat"]}
    sample = make_sample("caption_to_phrase_grounding", phrases, "a dog and a cat")
    for each, _ in augment_many(sample, ImageAugmentation(hflip=0.5, order="shuffle")):
        assert locations.decode(find_task(each.task), each.target or "", SIZE).labels == ["a dog", "a cat"]


def test_augmentation_depends_on_seed_epoch_and_sample_alone() -> None:
    samples = [detection_sample([10, 10, 50, 50]), make_sample("region_to_category", "cat", [10, 10, 50, 50])]
    augmentation = parse_image_augmentation(("hflip=0.5", "crop=0.9", "scale=0.8,1.2"))
    preprocessor = Preprocessor.from_processor(tiny_processor())
    one, other = (Florence2Dataset(samples, preprocessor, image_augmentation=augmentation, seed=1) for _ in range(2))
    first = [one.augmented(sample, SampleDraw(2, n, n)) for n, sample in enumerate(samples)]
    random.seed(99)
    later = [other.augmented(sample, SampleDraw(2, 7 + n, n)) for n, sample in enumerate(samples)]
    assert [(a.input, a.target, window) for a, window in first] == [(a.input, a.target, window) for a, window in later]
    assert len({one.augmented(samples[0], SampleDraw(epoch, 0, 0))[1] for epoch in range(20)}) > 15
    assert len({one.augmented(samples[0], SampleDraw(0, 0, 0, repeat))[1] for repeat in range(20)}) > 15


def test_evaluation_images_are_not_augmented() -> None:
    samples = [detection_sample([10, 10, 50, 50]), make_sample("region_to_category", "cat", [10, 10, 50, 50])]
    augmentation = parse_image_augmentation(("hflip=0.5", "crop=0.9", "scale=0.8,1.2"))
    preprocessor = Preprocessor.from_processor(tiny_processor())
    dataset = Florence2Dataset(samples, preprocessor, image_augmentation=augmentation, augment=False)
    draws = [SampleDraw(epoch, 0, 0) for epoch in range(20)]
    assert all(dataset.augmented(sample, draw)[1].is_identity for sample in samples for draw in draws)


def test_preview_and_summary_describe_the_augmentation() -> None:
    samples = [detection_sample([10, 10, 50, 50]), make_sample("caption", "a dog"), make_sample("ocr", "EXIT")]
    augmentation = parse_image_augmentation(("hflip=1", "crop=1"))
    preprocessor = Preprocessor.from_processor(tiny_processor())
    text = "\n".join(preview_lines(Florence2Dataset(samples, preprocessor, image_augmentation=augmentation), 1))
    assert "epoch 1 (flipped, x " in text
    assert augmentation_summary(samples, augmentation) == (
        "2 of 3 samples can be flipped (the others mention sides or writing), "
        "1 of 3 samples can be cropped (the others describe the full image)"
    )


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("hflp=0.5", "did you mean `hflip`?"),
        ("hflip=2", "pass for example `hflip=0.5`"),
        ("crop=often", "pass for example `crop=0.5`"),
        ("crop_min=0", "pass for example `crop_min=0.6`"),
        ("scale=2", "pass for example `scale=0.8,1.2`"),
        ("scale=1.2,0.8", "pass for example `scale=0.8,1.2`"),
        ("order=random", "pass `order=shuffle` or `order=reading`"),
        ("hflip", "pass `--augment hflip=...`"),
    ],
)
def test_invalid_augment_options_are_refused(word: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_image_augmentation((word,))
    assert caught.value.hint == hint
