"""Open one picture: turned upright, RGB, whatever the file holds.

A picture that cannot be read is a `PictureError` with one line that names it; nothing else leaves this file.
Knows nothing of folders, captions or the model's picture size.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from florence2.errors import UserError

ImageSource = Path | bytes | Image.Image
Size = tuple[int, int]  # (width, height) in pixels

_PLAIN = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
# Formats that need a decoder which may not be there: suffix -> module that brings it.
_OPTIONAL = {
    "avif": ("PIL._avif",),
    "heic": ("pillow_heif", "pi_heif"),
    "heif": ("pillow_heif", "pi_heif"),
    "jxl": ("pillow_jxl", "jxlpy"),
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as `warnings.filters` lists it
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


def _installed(module: str) -> bool:
    return find_spec(module) is not None


IMAGE_EXTENSIONS = frozenset(
    [f".{name}" for name in _PLAIN]
    + [f".{name}" for name, modules in _OPTIONAL.items() if any(map(_installed, modules))]
)


def is_image_name(name: str) -> bool:
    """Tell whether a file name ends like a picture that can be decoded here, in any case of letters."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS  # noqa: PTH122 - a million names


class ImageError(UserError):
    """One picture cannot be read; `what` names it."""


@dataclass(frozen=True, eq=False, slots=True)
class OpenedImage:
    """An upright RGB picture.

    `size` is the (width, height) of the whole picture in pixels; `image` may be smaller, when a JPEG was decoded
    at a reduced scale.
    """

    image: Image.Image
    size: Size


def open_image(source: ImageSource, *, min_size: Size | None = None, name: str = "") -> OpenedImage:
    """Open, turn by EXIF and convert to RGB; of an animation, the first frame.

    With `at_least=(width, height)` a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that still covers
    it on both sides, measured on the upright picture; without, decoding is exact. Transparency is laid on white.
    Raises PictureError for what cannot be read, is cut short, or has more pixels than Pillow's limit
    (twice `PIL.Image.MAX_IMAGE_PIXELS`, about 179 million).
    """
    with _one_line(source, name), _opened(source) as image:
        if min_size is not None and not isinstance(source, Image.Image):
            size = _upright_size(image)
            _reduce(image, min_size)
            image.load()
            return OpenedImage(_upright(_rgb(image), _orientation(image)), size)
        image.load()
        upright = _upright(_rgb(image), _orientation(image))
        return OpenedImage(upright, upright.size)


def image_size(source: ImageSource, *, name: str = "") -> Size:
    """Read (width, height) of the upright picture from the file's header alone."""
    with _one_line(source, name), _opened(source) as image:
        return _upright_size(image)


@contextmanager
def _opened(source: ImageSource) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
        return
    _quiet_pillow()
    try:
        image = Image.open(_stream(source))
    except UnidentifiedImageError:
        if not _optional_decoders():
            raise
        image = Image.open(_stream(source))
    with image:
        yield image


def _stream(source: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _quiet_pillow() -> None:
    # Pillow warns of damaged EXIF, which we do without, and of pictures at half of the size that it refuses: a
    # 108 megapixel photograph is no attack. One lasting filter, since `catch_warnings` is not safe between threads.
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW_WARNINGS[3].pattern)


@cache
def _optional_decoders() -> bool:
    """Register the decoders for heic and jxl that are installed; tell whether there are any."""
    found = [name for names in _OPTIONAL.values() for name in names if name[:3] != "PIL" and _installed(name)]
    for name in found:
        module = import_module(name)
        if hasattr(module, "register_heif_opener"):
            module.register_heif_opener()
    return bool(found)


@contextmanager
def _one_line(source: ImageSource, name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one line that names the picture."""
    named = name or (str(source) if isinstance(source, Path) else "a picture in memory")
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{named} does not exist") from None
    except IsADirectoryError:
        raise ImageError(f"{named} is a folder, not a picture") from None
    except PermissionError:
        raise ImageError(f"{named} may not be read", "check the file's permissions") from None
    except UnidentifiedImageError:
        raise ImageError(f"{named} is not a picture that can be read", _decoder_hint(named)) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(f"{named} has more than {limit:,} pixels", "make it smaller first") from None
    except Exception as error:  # decoders raise anything at all on damaged files
        said = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{named} cannot be read: {said}") from error


def _decoder_hint(named: str) -> str:
    suffix = Path(named).suffix.lower().lstrip(".")
    if suffix in ("heic", "heif") and f".{suffix}" not in IMAGE_EXTENSIONS:
        return "install `pillow-heif` to read it"
    if suffix == "jxl" and ".jxl" not in IMAGE_EXTENSIONS:
        return "install `pillow-jxl-plugin` to read it"
    return ""


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF is no reason to lose a sound picture, and it fails in many ways
        return 1


def _upright_size(image: Image.Image) -> Size:
    turned = image.format == "TIFF"  # Pillow already swaps the sides of a TIFF
    width, height = image.size
    return (height, width) if not turned and _orientation(image) in _SWAPS_SIDES else (width, height)


def _reduce(image: Image.Image, at_least: Size) -> None:
    width, height = at_least
    if _orientation(image) in _SWAPS_SIDES:
        width, height = height, width
    image.draft(None, (max(1, width), max(1, height)))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA_MODES or ("transparency" in image.info and image.mode in ("1", "L", "P", "RGB")):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Scale deep grey to 0..255: 16 bits by their full range, floats in 0..1 by 255.

    What fits neither (32-bit numbers beyond 16 bits, floats beyond 255) is stretched from its least to its greatest
    value, since the file does not say its range.
    """
    values = np.nan_to_num(grey.astype(np.float64), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if grey.dtype.kind == "f" and low >= 0 and high <= 255:
        values *= 255 if high <= 1 else 1
    elif grey.dtype.kind != "f" and low >= 0 and high <= 65535:
        values /= 257
    else:
        values = (values - low) * (255 / max(high - low, 1e-12))
    return np.rint(values).clip(0, 255).astype(np.uint8)
