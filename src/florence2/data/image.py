"""Decoding of one image file to an upright RGB image, and the image's size.

An image that cannot be read raises an `ImageError` of one line that names it; no other exception leaves this module.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from florence2.data.folders.image_names import missing_package, register_optional_decoders
from florence2.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np  # its import takes longer than a decoder process needs to start

Size = tuple[int, int]  # (width, height) in pixels

_TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # an entry of `warnings.filters`
_XMP = ("xmp", "XML:com.adobe.xmp")
_MAX_PIXELS = "FLORENCE2_MAX_IMAGE_PIXELS"  # an environment variable, so that worker processes have it, too
if os.environ.get(_MAX_PIXELS, "").isdecimal():
    Image.MAX_IMAGE_PIXELS = int(os.environ[_MAX_PIXELS]) // 2  # Pillow refuses twice this number
_REDUCIBLE = ("JPEG", "MPO")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


class ImageError(DatasetError):
    """An image that cannot be read; `what` names it."""


@dataclass(frozen=True, eq=False, slots=True)
class OpenedImage:
    """An upright RGB image.

    `size` is the (width, height) of the full image in pixels; `image` is smaller where a JPEG was decoded at a reduced
    scale.
    """

    image: Image.Image
    size: Size


_UnopenedSource = Path | bytes | Image.Image
ImageSource = _UnopenedSource | OpenedImage


def open_image(source: ImageSource, *, min_size: Size | None = None, name: str = "") -> OpenedImage:
    """Open an image, rotate it by its EXIF orientation and convert it to RGB; of an animation, the first frame.

    With `min_size=(width, height)` a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 whose upright sides
    are at least as long; without it, decoding is exact. Transparent pixels are blended with white.
    An `OpenedImage` is returned as it is.
    Raises ImageError for an image that cannot be read, is truncated, or has more pixels than Pillow's limit
    (twice `PIL.Image.MAX_IMAGE_PIXELS`, about 179 million; a JPEG: once it is reduced, and twice as many before).
    """
    if isinstance(source, OpenedImage):
        return source
    with _image_errors(source, name), _pillow_image(source) as image:
        if min_size is not None and not isinstance(source, Image.Image) and image.format in _REDUCIBLE:
            size = _upright_size(image)
            _reduce(image, min_size)
            _check_pixels(image)
            image.load()
            return OpenedImage(_upright(_rgb(image), _orientation(image)), size)
        if not isinstance(source, Image.Image):
            _check_pixels(image)
        image.load()
        upright = _upright(_rgb(image), _orientation(image))
        return OpenedImage(upright, upright.size)


def image_size(source: ImageSource, *, name: str = "") -> Size:
    """Read (width, height) of the upright image from the file's header alone."""
    if isinstance(source, OpenedImage):
        return source.size
    with _image_errors(source, name), _pillow_image(source) as image:
        return _upright_size(image)


@contextmanager
def _pillow_image(source: _UnopenedSource) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
        return
    if isinstance(source, Path) and not _can_be_opened(source):
        raise ImageError(f"{source} is not a regular file", "remove it, or replace it with an image")
    _ignore_pillow_warnings()
    try:
        image = Image.open(_stream(source))
    except Image.DecompressionBombError:
        image = _large_jpeg(source)
    except UnidentifiedImageError:
        if not register_optional_decoders():
            raise
        image = Image.open(_stream(source))
    with image:
        if image.format == "EPS":
            raise ValueError("it is EPS, a program that Pillow runs with Ghostscript; convert it to PNG")
        yield image


def _large_jpeg(source: Path | bytes) -> ImageFile.ImageFile:
    """Open a JPEG beyond Pillow's limit of pixels, because it can be decoded at a reduced size."""
    with suppress(SyntaxError):  # another format
        image = JpegImagePlugin.JpegImageFile(_stream(source))
        if image.width * image.height <= 4 * (Image.MAX_IMAGE_PIXELS or 0):  # progressive ones need memory for all
            return image
        image.close()
    raise Image.DecompressionBombError


def _check_pixels(image: Image.Image) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


def _can_be_opened(path: Path) -> bool:
    """Return False for pipes, sockets and devices: opening one may wait for ever."""
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)  # a folder has an error of its own


def _stream(source: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _ignore_pillow_warnings() -> None:
    # About damaged EXIF, and images of half its pixel limit. For good: `catch_warnings` is not thread-safe.
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW_WARNINGS[3].pattern)


@contextmanager
def _image_errors(source: _UnopenedSource, name: str) -> Iterator[None]:
    """Convert every exception of a decoder to an ImageError of one line that names the image."""
    where = name or (str(source) if isinstance(source, Path) else "an image in memory")
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{where} does not exist") from None
    except IsADirectoryError:
        raise ImageError(f"{where} is a folder, not an image") from None
    except PermissionError:
        raise ImageError(f"{where} cannot be read: permission denied", "check the file's permissions") from None
    except UnidentifiedImageError:
        raise ImageError(f"{where} is not an image that can be read", _decoder_hint(where)) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        what = f"{where} has more than {limit:,} pixels; set {_MAX_PIXELS} to read it"
        raise ImageError(what, "resize it first") from None
    except Exception as error:  # decoders raise exceptions of any type on damaged files
        message = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{where} cannot be read: {message}") from error


def _decoder_hint(where: str) -> str:
    package = missing_package(where)
    return f"install `{package}` to read it" if package else ""


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; Pillow would also take that of XMP, which browsers ignore."""
    xmp = {key: image.info.pop(key) for key in _XMP if key in image.info}
    try:
        # A PNG's own `getexif` decodes it first, and an error of the decoder must not end here.
        is_header = image.format == "PNG" and not (getattr(image, "tile", ()) and _has_late_exif(image))
        exif = Image.Image.getexif(image) if is_header else image.getexif()
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises exceptions of any type, and the image itself can still be read
        return 1
    finally:
        image.info.update(xmp)


def _has_late_exif(image: Any) -> bool:
    """Return whether a PNG that is not decoded yet has EXIF behind its pixels."""
    position = image.fp.tell()
    try:
        image.fp.seek(8)
        while len(start := image.fp.read(8)) == 8 and start[4:] != b"IEND":
            if start[4:] == b"eXIf":
                return "exif" not in image.info
            image.fp.seek(int.from_bytes(start[:4], "big") + 4, os.SEEK_CUR)
        return False
    finally:
        image.fp.seek(position)


def _upright_size(image: Image.Image) -> Size:
    is_upright = image.format == "TIFF"  # Pillow already swaps the sides of a TIFF
    width, height = image.size
    return (height, width) if not is_upright and _orientation(image) in _SWAPS_SIDES else (width, height)


def _reduce(image: Image.Image, min_size: Size) -> None:
    width, height = min_size
    if _orientation(image) in _SWAPS_SIDES:
        width, height = height, width
    image.draft(None, (max(1, width), max(1, height)))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # colors that are multiplied with alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in _ALPHA_MODES or ("transparency" in image.info and image.mode in ("1", "L", "P", "RGB")):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        import numpy as np

        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Scale grey values to 0..255: integers of 16 bits by their full range, floats in 0..1 by 255.

    Other ranges (integers beyond 16 bits, floats beyond 255) are scaled from their minimum to their maximum, because
    the file does not contain the range.
    """
    import numpy as np

    values = np.nan_to_num(grey.astype(np.float64), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if grey.dtype.kind == "f" and low >= 0 and high <= 255:
        values *= 255 if high <= 1 else 1
    elif grey.dtype.kind != "f" and low >= 0 and high <= 65535:
        values /= 257
    else:
        values = (values - low) * (255 / max(high - low, 1e-12))
    return np.rint(values).clip(0, 255).astype(np.uint8)
