"""A process that decodes images, as its parent knows it."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, cast

from PIL import Image, ImageFile

from florence2.data.decoding.decode_image import DecodeOptions, ImageTooLargeError
from florence2.data.decoding.decoder_messages import PIXEL_BYTES, DecodedImage, read_message, write_message
from florence2.data.image import ImageError
from florence2.errors import UserError
from florence2.log import logger

GIB = 2**30
_CODE = (
    "import json, sys; config = json.loads(sys.argv[1]); sys.path[:] = config['sys_path']; "
    "from florence2.data.decoding.decoder_main import main; main(config)"
)
_MAX_STDERR = 200  # characters of what a decoder writes to stderr
_CLOSE_SECONDS = 5.0


class DecoderEndedError(Exception):
    """A decoder process that ended before it answered, after `seconds`; `reason` says by what."""

    def __init__(self, exit_code: int, seconds: float, stderr: str) -> None:
        self.exit_code, self.seconds = exit_code, seconds
        name = f"exit code {exit_code}"
        if exit_code < 0:
            name = f"signal {-exit_code}: {signal.strsignal(-exit_code)}"
        self.reason = f"{name}; {stderr}" if stderr else name
        super().__init__(self.reason)


class DecoderMemoryError(Exception):
    """An image that needs more memory than its decoder process may take."""


class DecoderStartError(UserError):
    """A decoder process that cannot be started."""


class DecoderProcess:
    """A process that decodes one image at a time with at most `memory` GiB; `close()` ends it.

    It ends by itself when this process ends, in whatever way.
    """

    def __init__(self, memory: float) -> None:
        self.num_images = 0
        self._is_ready = False
        self._pixels, pixel_file = _shared_memory(PIXEL_BYTES)
        self._stderr, stderr = _pipe_that_drops()
        config = {
            "sys_path": sys.path,
            "memory_bytes": int(memory * GIB),
            "pixel_file": pixel_file,
            "pixel_bytes": PIXEL_BYTES,
        }
        try:
            self._process = _start(config, stderr)
        except OSError as error:
            self._close_files()
            raise DecoderStartError(f"a process that decodes images cannot be started: {error}", _HINT) from error
        finally:
            for file in (pixel_file, stderr):
                if file is not None:
                    os.close(file)
        self._requests, self._replies = cast("tuple[IO[bytes], IO[bytes]]", (self._process.stdin, self._process.stdout))

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    def decode(self, source: Path | bytes, options: DecodeOptions, name: str) -> DecodedImage:
        """Decode and resize an image.

        Raises ImageError for an image that cannot be read, DecoderMemoryError, and DecoderEndedError.
        """
        self.num_images += 1
        start = time.monotonic()
        try:
            self._await_start()
            write_message(self._requests, *_request(source, options, name))
            answer = read_message(self._replies)
        except BrokenPipeError:
            answer = None
        if answer is None:
            seconds = time.monotonic() - start
            self._process.wait(_CLOSE_SECONDS)
            raise DecoderEndedError(self._process.returncode, seconds, self._read_stderr())
        return self._read_answer(*answer, options, name)

    def close(self) -> None:
        """End the process at once, whatever it does."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for a disk, and ends when that answers
            self._process.wait(_CLOSE_SECONDS)
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()
        self._close_files()

    def _close_files(self) -> None:
        if self._pixels is not None:
            self._pixels.close()
        if self._stderr is not None:
            os.close(self._stderr)
            self._stderr = None

    def _await_start(self) -> None:
        if not self._is_ready and read_message(self._replies) is None:
            self._process.wait(_CLOSE_SECONDS)
            if self._process.returncode > 0:  # a signal is somebody's, who does not want this one, but another
                stderr = self._read_stderr()
                raise DecoderStartError(f"a process that decodes images ended at its start: {stderr}", _HINT)
            raise BrokenPipeError
        self._is_ready = True

    def _read_answer(self, answer: dict[str, Any], data: bytes, options: DecodeOptions, name: str) -> DecodedImage:
        import numpy as np

        stderr = self._read_stderr()
        if "error" in answer:
            if answer["error"] == "memory":
                raise DecoderMemoryError
            kind = ImageTooLargeError if answer["error"] == "too_large" else ImageError
            raise kind(f"{answer['what']} ({stderr})" if stderr else answer["what"], answer["hint"])
        if stderr:
            logger.debug(f"the decoder of {name} writes: {stderr}")
        shape = options.height, options.width, 3
        count = options.height * options.width * 3
        pixels = np.frombuffer(data or self._pixels or b"", np.uint8, count).reshape(shape)
        width, height = answer["size"]
        return DecodedImage(pixels.copy(), (int(width), int(height)))

    def _read_stderr(self) -> str:
        """Return what the process wrote to stderr since the last call, in one line."""
        if self._stderr is None:
            return ""
        try:
            text = os.read(self._stderr, 2**16).decode(errors="replace")
        except BlockingIOError:
            return ""
        return " ".join(text.split())[-_MAX_STDERR:]


_HINT = "pass `--image_workers threads`"


def _request(source: Path | bytes, options: DecodeOptions, name: str) -> tuple[dict[str, Any], bytes]:
    path = source if isinstance(source, Path) else None
    request = {
        "path": None if path is None else str(path),
        "folder": None if path is None or path.is_absolute() else str(Path.cwd()),
        "name": name,
        "options": vars(options),
        "pixel_limit": Image.MAX_IMAGE_PIXELS,
        "accepts_truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
    }
    return request, b"" if isinstance(source, Path) else source


def _start(config: dict[str, Any], stderr: int | None) -> subprocess.Popen[bytes]:
    """Start the interpreter, in a process group of its own: Ctrl-C is for the parent, which then closes the pipe."""
    words = [sys.executable, "-P", "-c", _CODE, json.dumps(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if sys.platform == "win32":
        return subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    return subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        pass_fds=[file for file in (config["pixel_file"],) if file is not None],
        process_group=0,
    )


def _shared_memory(size: int) -> tuple[mmap.mmap | None, int | None]:
    """Make memory without a name, which ends with the last process that has it; None where pixels use the pipe."""
    if sys.platform == "win32":
        return None, None
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("florence2-pixels")
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    os.truncate(file, size)
    return mmap.mmap(file, size), file


def _pipe_that_drops() -> tuple[int | None, int | None]:
    """Make a pipe for stderr that drops what does not fit, so that no end waits; None where it is not read."""
    if sys.platform == "win32":
        return None, None
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    os.set_blocking(theirs, False)
    return ours, theirs
