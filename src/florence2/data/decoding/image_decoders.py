"""Decoder processes for several threads: each image has a time and a memory limit, and none ends this process."""

from __future__ import annotations

import signal
import threading
import weakref
from pathlib import Path

from florence2.data.decoding.decode_image import DecodeOptions, slow_decoder_error, waiting_decoder_error
from florence2.data.decoding.decoder_messages import DecodedImage
from florence2.data.decoding.decoder_process import DecoderEndedError, DecoderMemoryError, DecoderProcess
from florence2.data.image import ImageError
from florence2.errors import UserError

# Exit codes by the hand of somebody else: the image is not to blame, and gets another process.
_ENDED_BY_OTHERS = {-signal.SIGTERM, -getattr(signal, "SIGKILL", 9), -getattr(signal, "SIGHUP", 1)}
_HAS_TIMERS = hasattr(signal, "SIGALRM")  # elsewhere a thread of the process ends it, with exit code 1


class ImageDecoders:
    """As many decoder processes as threads decode images at a time; `close()` or a `with` block ends them.

    A process that crashes, or needs more than `memory` GiB or the time of its `DecodeOptions`, ends with an ImageError
    for its image, and another one replaces it.
    """

    def __init__(self, memory: float = 4.0) -> None:
        self.memory = memory
        self._lock = threading.Lock()
        self._idle: list[DecoderProcess] = []
        self._all: set[DecoderProcess] = set()
        self._is_closed = threading.Event()
        self._finalizer = weakref.finalize(self, _close_all, self._all)

    def __enter__(self) -> ImageDecoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """List the ids of the processes."""
        with self._lock:
            return [process.pid for process in self._all]

    def decode(self, source: Path | bytes, options: DecodeOptions, name: str) -> DecodedImage:
        """Decode and resize an image; raises ImageError, with `name`, for an image that cannot be read.

        An image whose process was killed by somebody else, or had no memory left by earlier images, is decoded again,
        in a new process: who kills one often kills all.
        """
        for is_last in (False, True):
            process = self._start_process() if is_last else self._take()
            try:
                image = process.decode(source, options, name)
            except ImageError:
                self._put_back(process)
                raise
            except DecoderMemoryError:
                self._discard(process)
                if is_last or process.num_images == 1:
                    break
            except DecoderEndedError as end:
                self._discard(process)
                if self._is_closed.is_set():
                    raise ImageError(f"{name} was not decoded: its decoder was closed") from None
                if (late := _time_error(end, options, name)) is not None:
                    raise late from None
                if is_last or end.exit_code not in _ENDED_BY_OTHERS:
                    raise ImageError(f"the decoder of {name} crashed ({end.reason})", "repair the image") from None
            except BaseException:
                self._discard(process)
                raise
            else:
                self._put_back(process)
                return image
        raise ImageError(f"{name} needs more than {self.memory:g} GiB of memory to be decoded", "resize it first")

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._is_closed.set()
        self._finalizer()

    def _take(self) -> DecoderProcess:
        """Take an idle process, or start one."""
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return self._start_process()
            if process.is_alive:
                return process
            self._discard(process)

    def _start_process(self) -> DecoderProcess:
        if self._is_closed.is_set():
            raise UserError("the decoders are closed", "create other `ImageDecoders`")
        process = DecoderProcess(self.memory)
        with self._lock:
            self._all.add(process)
        return process

    def _put_back(self, process: DecoderProcess) -> None:
        with self._lock:
            self._idle.append(process)

    def _discard(self, process: DecoderProcess) -> None:
        with self._lock:
            self._all.discard(process)
        process.close()


def _time_error(end: DecoderEndedError, options: DecodeOptions, name: str) -> ImageError | None:
    """Return the error of an image whose process ended by its time limits; None where something else ended it."""
    if not _HAS_TIMERS:
        is_late = end.seconds >= options.timeout
        return ImageError(f"{name} could not be decoded in {options.timeout:g} s") if is_late else None
    if end.exit_code == -signal.SIGPROF:
        return slow_decoder_error(name, options.timeout)
    if end.exit_code == -signal.SIGALRM:
        return waiting_decoder_error(name, options.clock_timeout)
    return None


def _close_all(processes: set[DecoderProcess]) -> None:
    while processes:
        processes.pop().close()
