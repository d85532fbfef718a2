"""The program of a decoder process: it decodes the images that its parent sends, one at a time.

It imports neither torch nor numpy, so that it starts at once. It ends when its parent closes the pipe, and by a signal
when an image takes too long, which needs no parent.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile

from florence2.data.decoding.decode_image import DecodeOptions, ImageTooLargeError, decode_image
from florence2.data.decoding.decoder_messages import read_message, write_message
from florence2.data.image import ImageError, Size

OOM_SCORE = "300"  # the kernel ends a decoder before the process that holds the model
_MAX_WRITTEN_BYTES = 2**30  # of a file that a decoder writes


def main(config: dict[str, Any]) -> None:
    """Decode images until there are no more; `config` is that of `DecoderProcess`."""
    requests, replies = _take_pipes()
    pixels = None if config["pixel_file"] is None else mmap.mmap(config["pixel_file"], config["pixel_bytes"])
    _limit_process(config["memory_bytes"])
    write_message(replies, {})
    while (message := read_message(requests)) is not None:
        with _time_limits(DecodeOptions(**message[0]["options"])):
            content, data = _reply(*message)
        if pixels is not None and data and len(data) <= len(pixels):
            pixels[: len(data)] = data
            data = b""
        write_message(replies, content, data)


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Take stdin and stdout, which a decoder must not read or write."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _limit_process(memory_bytes: int) -> None:
    """Limit memory and files, as far as the system supports it: Linux does, macOS and Windows do not limit memory."""
    if sys.platform == "win32":
        return
    import resource

    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM, signal.SIGPROF])
    limits = {"RLIMIT_DATA": memory_bytes, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": _MAX_WRITTEN_BYTES}
    for name, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
            resource.setrlimit(getattr(resource, name), (limit, limit))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


@contextlib.contextmanager
def _time_limits(options: DecodeOptions) -> Iterator[None]:
    """End this process where the block takes longer, even in the midst of C code.

    SIGPROF ends one that computes, SIGALRM one that waits. Windows has neither: there `timeout` is by the clock.
    """
    if sys.platform == "win32":
        faulthandler.dump_traceback_later(options.timeout, exit=True)
        yield
        faulthandler.cancel_dump_traceback_later()
    else:
        limits = {signal.ITIMER_PROF: options.timeout, signal.ITIMER_REAL: options.clock_timeout}
        for timer, seconds in limits.items():
            signal.setitimer(timer, seconds)
        yield
        for timer in limits:
            signal.setitimer(timer, 0)


def _reply(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Decode the image of a request: the size of the full image and its resized pixels, or an error."""
    try:
        size, pixels = _decode(request, data)
    except ImageError as error:
        kind = "too_large" if isinstance(error, ImageTooLargeError) else "unreadable"
        kind = "memory" if isinstance(error.__cause__, MemoryError) else kind
        return {"error": kind, "what": error.what, "hint": error.hint}, b""
    except MemoryError:
        return {"error": "memory", "what": "", "hint": ""}, b""
    return {"size": size}, pixels


def _decode(request: dict[str, Any], data: bytes) -> tuple[Size, bytes]:
    Image.MAX_IMAGE_PIXELS = request["pixel_limit"]
    ImageFile.LOAD_TRUNCATED_IMAGES = request["accepts_truncated"]
    if request["folder"] is not None:
        os.chdir(request["folder"])
    source = data if request["path"] is None else Path(request["path"])
    opened = decode_image(source, DecodeOptions(**request["options"]), request["name"])
    return opened.size, opened.image.tobytes()
