"""Decoding of one image to the size of a model, in whatever process."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from florence2.data.image import ImageError, ImageSource, OpenedImage, open_image

_CLOCK_FACTOR = 5


@dataclass(frozen=True)
class DecodeOptions:
    """How an image is decoded and resized: `width` and `height` in pixels, `resample` a filter of Pillow by number.

    A JPEG is decoded at a reduced scale unless `full_decode` is set. `formats` are the formats that are accepted
    (default: all), `max_pixels` the most pixels that an image may have (default: Pillow's limit), `timeout` the seconds
    of processor time that a decoder may take.
    """

    width: int
    height: int
    resample: int
    full_decode: bool = False
    formats: tuple[str, ...] = ()
    max_pixels: int | None = None
    timeout: float = 60.0

    @property
    def clock_timeout(self) -> float:
        """Return the seconds by the clock: more, because a sound image may wait for a processor that others use."""
        return _CLOCK_FACTOR * self.timeout


def slow_decoder_error(name: str, timeout: float) -> ImageError:
    """Return the error of an image whose decoder computed for `timeout` seconds without an end."""
    return ImageError(f"{name} could not be decoded in {timeout:g} s of processor time")


def waiting_decoder_error(name: str, clock_timeout: float) -> ImageError:
    """Return the error of an image whose decoder had `clock_timeout` seconds, and did not compute in most of them."""
    reason = "its decoder waited, for a disk or a share that does not answer, or for a processor"
    return ImageError(f"{name} could not be decoded in {clock_timeout:g} s: {reason}")


class ImageTooLargeError(ImageError):
    """An image with more pixels than are accepted."""


def decode_image(source: ImageSource, options: DecodeOptions, name: str) -> OpenedImage:
    """Decode an image and stretch it to the size of the options; `size` is that of the full image.

    Raises ImageError, with `name`, for an image that cannot be read.
    """
    if (options.formats or options.max_pixels is not None) and isinstance(source, bytes | Path):
        _check_header(source, options, name)
    size = options.width, options.height
    opened = open_image(source, min_size=None if options.full_decode else size, name=name)
    return OpenedImage(opened.image.resize(size, resample=Image.Resampling(options.resample)), opened.size)


def _check_header(source: bytes | Path, options: DecodeOptions, name: str) -> None:
    """Refuse other formats, and more pixels than the limit, before anything is decoded."""
    width = height = 0
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=options.formats or None) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        if options.max_pixels is not None:
            width, height = options.max_pixels, 2
    except MemoryError:
        raise
    except Exception:  # decoders raise exceptions of any type on damaged files
        hint = f"send {', '.join(options.formats)}" if options.formats else ""
        raise ImageError(f"{name} is not an image that can be read", hint) from None
    if options.max_pixels is not None and width * height > options.max_pixels:
        raise ImageTooLargeError(f"{name} has more than {options.max_pixels:,} pixels", "resize it first")
