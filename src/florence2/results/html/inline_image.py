"""Images inside HTML pages, as data URLs."""

import base64
import io
from typing import Literal

from PIL import Image

IMAGE_SIDE = 640  # pixels of the longer side of an image on a page
_QUALITY = 80


def data_url(image: Image.Image, image_format: Literal["JPEG", "PNG"] = "JPEG") -> str:
    """Encode an image as a data URL."""
    buffer = io.BytesIO()
    (image.convert("RGB") if image_format == "JPEG" else image).save(buffer, image_format, quality=_QUALITY)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{image_format.lower()};base64,{encoded}"


def image_tag(image: Image.Image) -> str:
    """Return an `img` element that holds the image as a JPEG of at most `IMAGE_SIDE` pixels a side."""
    small = image.copy()
    small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return f'<img alt="" src="{data_url(small)}">'
