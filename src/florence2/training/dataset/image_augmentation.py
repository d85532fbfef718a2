"""Pictures seen otherwise from turn to turn: mirrored, in part, larger or smaller, with all that is said of places.

What is seen follows from the rules, the seed, the epoch and the sample alone. It is chosen so that the answer stays
true: see `may_mirror` and `turned`. Knows boxes and words, and of the picture only which part of it is shown.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from PIL import Image, ImageOps

from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model.location_grammar import decode_objects
from florence2.model.locations import decode, encode, encode_region
from florence2.model.tasks import InputType, OutputType, Task, find_task
from florence2.settings_io import parse_options
from florence2.training.dataset.box_transforms import BINS, CropWindow, transform_box
from florence2.training.dataset.caption_augmentation import has_special_tokens

# Words that a mirror would make untrue: sides and turns, and all that speaks of writing.
SIDES = (
    "left right leftmost rightmost lefthand righthand clockwise counterclockwise anticlockwise east west "
    "eastern western o'clock"
).split()
WRITING = (
    "text texts word words letter letters lettering number numbers digit digits read reads say says "
    "saying spell spells written writing handwriting inscription label labeled labelled logo "
    "sign signs titled caption captioned"
).split()
_UNMIRRORED = re.compile(rf"\b(?:{'|'.join((*SIDES, *WRITING))})\b|[\"“”«»]")
TRIES = 4  # windows that are drawn before a picture stays whole
Sides = tuple[float, float, float, float]
_WHOLE = 0.999  # a region that is read must not be cut


@dataclass(frozen=True)
class ImageAugmentation:
    """The options of `--augment`; the values here change nothing."""

    hflip: float = 0.0
    crop: float = 0.0
    crop_min: float = 0.6
    scale: tuple[float, float] = (1.0, 1.0)
    keep: float = 0.3
    order: Literal["reading", "shuffle"] = "reading"

    @property
    def changes_images(self) -> bool:
        """Tell whether pictures are ever seen otherwise than they are."""
        return self.hflip > 0 or self.crop > 0 or self.scale != (1.0, 1.0)

    @property
    def is_noop(self) -> bool:
        """Tell whether nothing ever changes."""
        return not self.changes_images and self.order == "reading"


def parse_image_augmentation(words: tuple[str, ...]) -> ImageAugmentation:
    """Read the words of `--augment`."""
    given = parse_options("--augment", words, [field.name for field in fields(ImageAugmentation)])
    values: dict[str, Any] = {name: _READ.get(name, _probability)(name, value) for name, value in given.items()}
    return ImageAugmentation(**values)


def augment_sample(sample: Sample, rules: ImageAugmentation, chance: random.Random) -> tuple[Sample, CropWindow]:
    """Give the sample as it is asked and answered at one turn, and what is seen of its picture.

    A crop is taken where every place is known: words about a whole picture may speak of what it would cut away. A crop
    that loses all objects of an answer, or the region that is asked about, is drawn anew, and after some tries the
    picture stays whole.
    """
    task = find_task(sample.task)
    if not _is_understood(task, sample):
        return sample, CropWindow()
    mirrored = chance.random() < rules.hflip and can_flip(sample)
    crops = [_window(rules, chance, mirrored, _knows_its_places(task, sample)) for _ in range(TRIES)]
    for each in (*crops, CropWindow(flipped=mirrored)):
        if (moved := _moved(sample, task, each, rules.keep)) is not None:
            return _in_order(moved, task, rules, each, chance), each
    return sample, CropWindow()


def augmentation_summary(samples: Sequence[Sample], rules: ImageAugmentation) -> str:
    """Say how many samples can be seen otherwise, and why the others cannot."""
    fit = [sample for sample in samples if _is_understood(find_task(sample.task), sample)]
    mirrored = sum(can_flip(sample) for sample in fit)
    cropped = sum(_knows_its_places(find_task(sample.task), sample) for sample in fit)
    said = []
    if rules.hflip > 0:
        said.append(f"{mirrored:,} of {len(samples):,} may be mirrored (the others speak of sides or of writing)")
    if rules.crop > 0 or rules.scale[1] > 1:
        said.append(f"{cropped:,} of {len(samples):,} may be cropped (the others speak of whole pictures)")
    return ", ".join(said) or f"{len(fit):,} of {len(samples):,} may be seen smaller"


def can_flip(sample: Sample) -> bool:
    """Tell whether question and answer stay true in a mirror: no sides, no turns, and nothing written."""
    task = find_task(sample.task)
    if task.is_custom or "ocr" in task.name:
        return False
    return _UNMIRRORED.search(f"{sample.input} {sample.target or ''}".lower()) is None


def crop_image(image: Image.Image, view: CropWindow, ground: tuple[int, int, int]) -> tuple[Image.Image, Sides]:
    """Give the picture, with ground around it where the view reaches over its edge, and the box in it that is seen."""
    width, height = image.size
    left, top, right, bottom = view.left * width, view.top * height, view.right * width, view.bottom * height
    more = tuple(max(0, -math.floor(room)) for room in (left, top, width - right, height - bottom))
    if any(more):
        image = ImageOps.expand(image.convert("RGB"), more, ground)
    return image, (left + more[0], top + more[1], right + more[0], bottom + more[1])


def _window(rules: ImageAugmentation, chance: random.Random, mirrored: bool, may_crop: bool) -> CropWindow:
    crop, scale, *sizes, x, y = (chance.random() for _ in range(6))
    low, high = rules.scale
    times = low + scale * (high - low)
    kept = [rules.crop_min + size * (1 - rules.crop_min) if crop < rules.crop else 1.0 for size in sizes]
    if not may_crop:
        times, kept = min(times, 1.0), [1.0, 1.0]
    width, height = (size / times for size in kept)
    left, top = x * (1 - width), y * (1 - height)
    right, bottom = (1.0 if side == 1.0 else start + side for start, side in ((left, width), (top, height)))
    return CropWindow(left, top, right, bottom, mirrored)


def _knows_its_places(task: Task, sample: Sample) -> bool:
    target = sample.target or ""
    return task.input_type is InputType.REGION or (
        task.output_type is not OutputType.TEXT and (not target or has_special_tokens(target))
    )


def _is_understood(task: Task, sample: Sample) -> bool:
    """Tell whether each location token of question and answer is one that can be moved."""
    target = sample.target or ""
    if task.input_type is InputType.REGION:
        if len(decode(OutputType.REGIONS, sample.input, BINS).bboxes) != 1 or sample.input.count("<") != 4:
            return False
    elif has_special_tokens(sample.input) or (task.is_custom and has_special_tokens(task.token)):
        return False
    if task.output_type is OutputType.TEXT or not target:
        return not has_special_tokens(target)
    return not _beside_objects(task, target)


def _beside_objects(task: Task, target: str) -> str:
    """Give the words of an answer that belong to no object."""
    rest, at = "", 0
    for placed in decode_objects(task.output_type, target):
        for start, end in (placed.label_span, placed.span):
            rest, at = rest + target[at : max(start, at)], max(end, at)
    return re.sub(r"<[^<>]*>", "", rest + target[at:]).strip()


def _moved(sample: Sample, task: Task, view: CropWindow, keep: float) -> Sample | None:
    """Move what is said of places; None where what it is about would be lost."""
    if not view.is_changed:
        return sample
    if task.input_type is InputType.REGION:
        region = decode(OutputType.REGIONS, sample.input, BINS).bboxes[0]
        box = transform_box(region, view, _WHOLE if "ocr" in task.name else keep)
        if box is None:
            return None
        sample = replace(sample, input=encode_region(box, BINS))
    if task.output_type is OutputType.TEXT or not sample.target:
        return sample
    value = decode(task, sample.target, BINS)
    moved = value.transformed(view.transform_points, BINS, keep, view.flipped)
    if value and not moved:
        return None
    return replace(sample, target=encode(task, moved, BINS))


def _in_order(sample: Sample, task: Task, rules: ImageAugmentation, view: CropWindow, chance: random.Random) -> Sample:
    """Put objects in the order that is learnt; phrases keep that of their sentence."""
    if task.output_type in (OutputType.TEXT, OutputType.PHRASES) or not has_special_tokens(sample.target or ""):
        return sample
    if rules.order == "reading" and not view.is_changed:
        return sample
    value = decode(task, sample.target or "", BINS)
    ordered = value.shuffled(chance) if rules.order == "shuffle" else value.in_reading_order()
    return replace(sample, target=encode(task, ordered, BINS))


def _probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"`--augment {name}={value}` is no number from 0 to 1", f"write for example `{name}=0.5`")
    return float(value)


def _crop_min(name: str, value: Any) -> float:
    if _probability(name, value) <= 0:
        raise UserError(f"`--augment {name}={value}` leaves nothing of a picture", "write for example `crop_min=0.6`")
    return float(value)


def _scale(name: str, value: Any) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in str(value).split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not 0.1 <= low <= high <= 10:
        raise UserError(f"`--augment {name}={value}` is no range from 0.1 to 10", "write for example `scale=0.8,1.2`")
    return low, high


def _order(name: str, value: Any) -> str:
    if value not in ("reading", "shuffle"):
        raise UserError(f"`--augment {name}={value}` is not known", "write `order=shuffle` or `order=reading`")
    return str(value)


_READ = {"crop_min": _crop_min, "scale": _scale, "order": _order}
