"""A region as people write it, `x1,y1,x2,y2` in pixels, to what the model is asked: location tokens.

A thousandth of one picture is not that of another, so pixels wait until the picture is known.
"""

import re
from dataclasses import dataclass, replace

from florence2.data.image import ImageError, ImageSource
from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model.locations import encode_region, parse_box
from florence2.model.tasks import NUM_BINS


def check_region(words: str) -> str:
    """Check a region: location tokens, or a box in pixels."""
    box = parse_box(words)
    if box is None:
        bins = re.fullmatch(r"(?:<loc_\d+>){4,}", words)
        if not bins or any(int(bin) >= NUM_BINS for bin in re.findall(r"\d+", words)):  # noqa: A001
            raise UserError(
                f"`{words}` is no region",
                "pass pixels as `x1,y1,x2,y2`, or four location tokens, which count thousandths of the picture",
            )
    elif box[0] >= box[2] or box[1] >= box[3]:
        raise UserError(f"the region `{words}` holds nothing", "x1,y1 is its top left corner, x2,y2 its bottom right")
    return words


@dataclass(frozen=True)
class RegionOutsideImage:
    """What a picture is replaced by where the region is not on it: opening it says so."""

    what: str

    def __call__(self) -> ImageSource:
        """Say what is wrong, in place of a picture."""
        raise UserError(self.what)


def region_to_tokens(sample: Sample) -> Sample:
    """Write a sample's region in pixels as location tokens; what cannot be done shows when the picture is opened."""
    box = parse_box(sample.input)
    if box is None:
        return sample
    try:
        width, height = sample.size()
    except ImageError:
        return sample
    if max(box[0], 0) >= min(box[2], width) or max(box[1], 0) >= min(box[3], height):
        what = f"{sample.id} has {width} x {height} pixels, and the region is {sample.input}"
        return replace(sample, image=RegionOutsideImage(what))
    return replace(sample, input=encode_region(box, (width, height)))
