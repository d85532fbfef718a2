"""Random flips, crops and scales of images, with the positions in their prompts and targets.

A window follows from the options and a random number generator. It is chosen so that the target stays true: see
`can_flip` and `augment_sample`.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from PIL import Image, ImageOps

from florence2.data.sample import Sample
from florence2.errors import OptionError
from florence2.model.location_grammar import decode_objects
from florence2.model.locations import decode, encode, encode_region
from florence2.model.tasks import InputType, OutputType, Task, find_task
from florence2.settings_io import parse_options
from florence2.training.dataset.box_transforms import BIN_GRID, CropWindow, transform_answer, transform_box
from florence2.training.dataset.caption_augmentation import has_special_tokens

# Words that may be untrue of a flipped image: sides, directions of rotation, and everything about writing.
SIDES = (
    "left right leftmost rightmost lefthand righthand clockwise counterclockwise anticlockwise east west "
    "eastern western o'clock"
).split()
WRITING = (
    "text texts word words letter letters lettering number numbers digit digits read reads say says "
    "saying spell spells written writing handwriting inscription label labeled labelled logo "
    "sign signs titled caption captioned"
).split()
_UNFLIPPABLE = re.compile(rf"\b(?:{'|'.join((*SIDES, *WRITING))})\b|[\"“”«»]")
MAX_CROPS = 4  # random crops per image, before the full image is used
OCR_MIN_VISIBLE = 0.999  # a region of text must not be cut

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageAugmentation:
    """The options of `--augment`; the defaults change nothing.

    `hflip` and `crop` are probabilities. A crop has at least the fraction `crop_min` of each side. `scale` is the
    range of the factor by which the content is resized. `keep` is the fraction of an object that must be visible.
    """

    hflip: float = 0.0
    crop: float = 0.0
    crop_min: float = 0.6
    scale: tuple[float, float] = (1.0, 1.0)
    keep: float = 0.3
    order: Literal["reading", "shuffle"] = "reading"

    @property
    def changes_images(self) -> bool:
        """Return whether images are flipped, cropped or scaled."""
        return self.hflip > 0 or self.crop > 0 or self.scale != (1.0, 1.0)

    @property
    def is_noop(self) -> bool:
        """Return whether neither images nor targets change."""
        return not self.changes_images and self.order == "reading"


def parse_image_augmentation(words: Sequence[str]) -> ImageAugmentation:
    """Parse `--augment key=value`."""
    options = parse_options("--augment", tuple(words), list(_PARSERS))
    values: dict[str, Any] = {name: _PARSERS[name](name, value) for name, value in options.items()}
    return ImageAugmentation(**values)


def augment_sample(sample: Sample, augmentation: ImageAugmentation, rng: random.Random) -> tuple[Sample, CropWindow]:
    """Choose a random window of the sample's image, and convert the positions in its prompt and target to the window.

    An image is cropped only if the sample locates everything that it is about: a caption may describe what a crop
    removes. A crop that removes all objects of the target, or the region of the prompt, is drawn again, at most
    `MAX_CROPS` times; then the full image is used.
    """
    task = find_task(sample.task)
    if not _can_transform(task, sample):
        return sample, CropWindow()
    is_flipped = rng.random() < augmentation.hflip and can_flip(sample)
    can_crop = _can_crop(task, sample)
    crops = [_random_window(augmentation, rng, is_flipped, can_crop) for _ in range(MAX_CROPS)]
    for window in (*crops, CropWindow(is_flipped=is_flipped)):
        if (transformed := _transform_sample(sample, task, window, augmentation.keep)) is not None:
            return _order_objects(transformed, task, augmentation, window, rng), window
    return sample, CropWindow()


def augmentation_summary(samples: Sequence[Sample], augmentation: ImageAugmentation) -> str:
    """Describe how many samples the augmentation can change, and why it cannot change the others."""
    suitable = [sample for sample in samples if _can_transform(find_task(sample.task), sample)]
    num_flippable = sum(can_flip(sample) for sample in suitable)
    num_croppable = sum(_can_crop(find_task(sample.task), sample) for sample in suitable)
    total = f"{len(samples):,} samples"
    sentences = []
    if augmentation.hflip > 0:
        sentences.append(f"{num_flippable:,} of {total} can be flipped (the others mention sides or writing)")
    if augmentation.crop > 0 or augmentation.scale[1] > 1:
        sentences.append(f"{num_croppable:,} of {total} can be cropped (the others describe the full image)")
    return ", ".join(sentences) or f"{len(suitable):,} of {total} can be scaled down"


def can_flip(sample: Sample) -> bool:
    """Return whether input and target stay true in a flipped image: they mention neither sides nor writing."""
    task = find_task(sample.task)
    if task.is_custom or "ocr" in task.name:
        return False
    return _UNFLIPPABLE.search(f"{sample.input} {sample.target or ''}".lower()) is None


def crop_image(image: Image.Image, window: CropWindow, fill_color: tuple[int, int, int]) -> tuple[Image.Image, Box]:
    """Pad the image with `fill_color` where the window extends beyond it; return it and the box of the window."""
    width, height = image.size
    left, top, right, bottom = window.left * width, window.top * height, window.right * width, window.bottom * height
    padding = tuple(max(0, -math.floor(margin)) for margin in (left, top, width - right, height - bottom))
    if any(padding):
        image = ImageOps.expand(image.convert("RGB"), padding, fill_color)
    return image, (left + padding[0], top + padding[1], right + padding[0], bottom + padding[1])


def _random_window(augmentation: ImageAugmentation, rng: random.Random, is_flipped: bool, can_crop: bool) -> CropWindow:
    crop, scale, *sizes, x, y = (rng.random() for _ in range(6))
    low, high = augmentation.scale
    factor = low + scale * (high - low)
    crop_min, is_cropped = augmentation.crop_min, crop < augmentation.crop
    fractions = [crop_min + size * (1 - crop_min) if is_cropped else 1.0 for size in sizes]
    if not can_crop:
        factor, fractions = min(factor, 1.0), [1.0, 1.0]
    width, height = (fraction / factor for fraction in fractions)
    left, top = x * (1 - width), y * (1 - height)
    right, bottom = (1.0 if side == 1.0 else start + side for start, side in ((left, width), (top, height)))
    return CropWindow(left, top, right, bottom, is_flipped)


def _can_crop(task: Task, sample: Sample) -> bool:
    """Return whether the sample is about a region, or its target consists of located objects."""
    target = sample.target or ""
    return task.input_type is InputType.REGION or (
        task.output_type is not OutputType.TEXT and (not target or has_special_tokens(target))
    )


def _can_transform(task: Task, sample: Sample) -> bool:
    """Return whether every location token of input and target belongs to a position that the task defines."""
    target = sample.target or ""
    if task.input_type is InputType.REGION:
        if len(decode(OutputType.REGIONS, sample.input, BIN_GRID).bboxes) != 1 or sample.input.count("<") != 4:
            return False
    elif has_special_tokens(sample.input) or (task.is_custom and has_special_tokens(task.token)):
        return False
    if task.output_type is OutputType.TEXT or not target:
        return not has_special_tokens(target)
    return not _text_outside_objects(task, target)


def _text_outside_objects(task: Task, target: str) -> str:
    """Return the text of a target that belongs to no object."""
    text, position = "", 0
    for item in decode_objects(task.output_type, target):
        for start, end in (item.label_span, item.span):
            text, position = text + target[position : max(start, position)], max(end, position)
    return re.sub(r"<[^<>]*>", "", text + target[position:]).strip()


def _transform_sample(sample: Sample, task: Task, window: CropWindow, min_visible: float) -> Sample | None:
    """Convert the positions of a sample to the window; None if its region or all objects of its target are outside."""
    if window.is_identity:
        return sample
    if task.input_type is InputType.REGION:
        (region,) = decode(OutputType.REGIONS, sample.input, BIN_GRID).bboxes
        box = transform_box(region, window, OCR_MIN_VISIBLE if "ocr" in task.name else min_visible)
        if box is None:
            return None
        sample = replace(sample, input=encode_region(box, BIN_GRID))
    if task.output_type is OutputType.TEXT or not sample.target:
        return sample
    answer = decode(task, sample.target, BIN_GRID)
    transformed = transform_answer(answer, window, min_visible)
    if len(answer) > 0 and len(transformed) == 0:
        return None
    return replace(sample, target=encode(task, transformed, BIN_GRID))


def _order_objects(
    sample: Sample, task: Task, augmentation: ImageAugmentation, window: CropWindow, rng: random.Random
) -> Sample:
    """Shuffle the objects of a target, or restore reading order; phrases keep the order of their sentence."""
    target = sample.target or ""
    if task.output_type in (OutputType.TEXT, OutputType.PHRASES) or not has_special_tokens(target):
        return sample
    if augmentation.order == "reading" and window.is_identity:
        return sample
    answer = decode(task, target, BIN_GRID)
    ordered = answer.shuffled(rng) if augmentation.order == "shuffle" else answer.in_reading_order()
    return replace(sample, target=encode(task, ordered, BIN_GRID))


def _parse_probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise OptionError(f"`--augment {name}={value}` is not a number from 0 to 1", f"pass for example `{name}=0.5`")
    return float(value)


def _parse_crop_min(name: str, value: Any) -> float:
    if _parse_probability(name, value) <= 0:
        raise OptionError(f"`--augment {name}={value}` allows empty crops", "pass for example `crop_min=0.6`")
    return float(value)


def _parse_scale(name: str, value: Any) -> tuple[float, float]:
    try:
        low, high = (float(number) for number in str(value).split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not 0.1 <= low <= high <= 10:
        raise OptionError(
            f"`--augment {name}={value}` is not a range within 0.1 and 10", "pass for example `scale=0.8,1.2`"
        )
    return low, high


def _parse_order(name: str, value: Any) -> str:
    if value not in ("reading", "shuffle"):
        raise OptionError(f"`--augment {name}={value}` is not an order", "pass `order=shuffle` or `order=reading`")
    return str(value)


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "hflip": _parse_probability,
    "crop": _parse_probability,
    "crop_min": _parse_crop_min,
    "scale": _parse_scale,
    "keep": _parse_probability,
    "order": _parse_order,
}
