"""Regions in pixels, `x1,y1,x2,y2`, converted to location tokens.

A location token is a thousandth of an image's side, so the conversion needs the size of each image.
"""

import re
from dataclasses import dataclass, replace

from florence2.data.image import ImageError, ImageSource
from florence2.data.sample import Sample
from florence2.errors import DatasetError, OptionError
from florence2.model.locations import encode_region, parse_box
from florence2.model.tasks import NUM_BINS


def check_region(text: str) -> str:
    """Return a region unchanged; raise an OptionError unless it is location tokens or a box in pixels."""
    box = parse_box(text)
    if box is None:
        is_tokens = re.fullmatch(r"(?:<loc_\d+>){4,}", text)
        if not is_tokens or any(int(number) >= NUM_BINS for number in re.findall(r"\d+", text)):
            raise OptionError(
                f"`{text}` is not a region",
                "pass pixels as `x1,y1,x2,y2`, or four location tokens, in thousandths of the image's sides",
            )
    elif box[0] >= box[2] or box[1] >= box[3]:
        raise OptionError(
            f"the region `{text}` is empty", "pass the top left corner as x1,y1, the bottom right as x2,y2"
        )
    return text


@dataclass(frozen=True)
class RegionOutsideImage:
    """The image of a sample whose region is outside its image; opening it raises a DatasetError."""

    what: str

    def __call__(self) -> ImageSource:
        """Raise the error."""
        raise DatasetError(self.what)


def region_to_tokens(sample: Sample) -> Sample:
    """Convert a sample's region in pixels to location tokens; an error is raised later, when the image is opened."""
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
