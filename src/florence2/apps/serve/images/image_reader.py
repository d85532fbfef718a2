"""Reading of the images that a request names: in the body as data URI or base64, or at a URL of an allowed host.

Each image is decoded in a process of its own, within limits of time and memory, after its header was checked for its
format and number of pixels.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from florence2 import AsyncEngine, ImageError, ImageTooLargeError, OpenedImage, Sample
from florence2.apps.serve.images.image_urls import fetch_image
from florence2.apps.serve.model_service import NamedImage
from florence2.apps.serve.request_limits import RequestError, RequestLimits, busy

# Decoders that read nothing but the image: others of Pillow start programs (EPS) or are rarely used and rarely tested.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
DECODING_THREADS = 4
_DATA_URI = re.compile(r"data:(?:[^,]*;)?base64,", re.IGNORECASE)


class ImageReader:
    """Decodes the images of requests; `close()` stops its threads."""

    def __init__(self, limits: RequestLimits, media_domains: Collection[str] = ()) -> None:
        self._limits = limits
        self._media_domains = frozenset(map(str.lower, media_domains))
        self._threads = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode-images")

    def close(self) -> None:
        """Stop the threads; images that wait are not decoded."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def open(self, engine: AsyncEngine, source: str | bytes, name: str) -> NamedImage:
        """Decode an image as the engine reads it; `source` is its bytes, base64 text, a data URI or a URL.

        Raises a RequestError that names the image, and never shows its content: of status 400 where the image is to
        blame, and of 503 where it waited too long for other images.
        """
        limit = 2 * self._limits.image_timeout
        loop, has_started = asyncio.get_running_loop(), asyncio.Event()

        def read() -> OpenedImage:
            loop.call_soon_threadsafe(has_started.set)
            return self._read(engine, source, name)

        work = loop.run_in_executor(self._threads, read)
        try:
            async with asyncio.timeout(limit):  # `wait_for` of Python 3.11 may swallow the end of the request
                await has_started.wait()
            return NamedImage(name, await work)  # whose decoder has time limits of its own
        except TimeoutError:
            raise busy(f"{name} was not decoded within {limit:g} seconds") from None
        finally:
            work.cancel()  # without effect once it has started

    def _read(self, engine: AsyncEngine, source: str | bytes, name: str) -> OpenedImage:
        data = self._bytes(source, name) if isinstance(source, str) else source
        limits = self._limits
        try:
            return engine.open_image(
                Sample(name, data, "caption"),
                formats=FORMATS,
                max_pixels=limits.max_image_pixels,
                timeout=limits.image_timeout,
            )
        except ImageTooLargeError as error:
            raise RequestError(error.what, error.hint, status=413) from None
        except ImageError as error:
            raise RequestError(error.what, error.hint) from None

    def _bytes(self, source: str, name: str) -> bytes:
        source = source.strip()
        if not source[:8].lower().startswith(("http://", "https://")):
            return decode_base64(source, name)
        limits = self._limits
        max_bytes, timeout = limits.max_request_bytes, limits.image_timeout
        return fetch_image(source, self._media_domains, max_bytes=max_bytes, timeout=timeout)


def decode_base64(text: str, name: str) -> bytes:
    """Decode a data URI or plain base64 text, of either alphabet, with its padding or without, escaped or not."""
    if text[:5].lower() == "data:":
        header = _DATA_URI.match(text[:200])
        if header is None:
            raise RequestError(f"{name} is not base64 data", "send `data:image/jpeg;base64,...`")
        text = text[header.end() :]
    plain = "".join((unquote(text) if "%" in text else text).split()).rstrip("=")
    padded = plain + "=" * (-len(plain) % 4)
    try:
        return base64.b64decode(padded, altchars=b"-_" if "-" in plain or "_" in plain else None, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name} is not valid base64", "send `data:image/jpeg;base64,...`") from None
