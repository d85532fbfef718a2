"""Images from arrays of pixels."""

import numpy as np
from PIL import Image

from florence2.errors import OptionError


def image_from_array(pixels: np.ndarray, name: str) -> Image.Image:
    """Return the image of an array (H, W, 3), (H, W, 4) or (H, W) of uint8; raises OptionError for any other."""
    has_pixels = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in {3, 4})
    if pixels.dtype != np.uint8 or not has_pixels:
        what = f"{name} is an array of shape {pixels.shape} and type {pixels.dtype}"
        raise OptionError(what, "pass pixels as uint8, from 0 to 255, in the shape (height, width, 3)")
    return Image.fromarray(pixels)
