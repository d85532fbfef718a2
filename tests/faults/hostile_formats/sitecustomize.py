"""An image format for Pillow whose decoder crashes, hangs, waits, grows or writes to stderr.

Python imports this module at its start where PYTHONPATH has this folder. A file is `HOSTILE `, the name of a fault in
8 letters, and some bytes.
"""

import ctypes
import itertools
import os

from PIL import BmpImagePlugin, Image, ImageFile


def crash() -> None:
    os.write(2, b"free(): invalid pointer\n")
    ctypes.string_at(0)


def hang() -> None:
    sum(itertools.repeat(0))  # in C, with Python's lock


def wait() -> None:
    os.read(os.pipe()[0], 1)  # as from a share that does not answer


def grow() -> None:
    blocks = []
    while True:
        blocks.append(bytes(2**26))


def chatter() -> None:
    os.write(1, b"a line on stdout\n")
    for _ in range(1000):  # more than a pipe takes
        try:
            os.write(2, b"a line on stderr " * 100)
        except BlockingIOError:
            break


FAULTS = {each.__name__: each for each in (crash, hang, wait, grow, chatter)}


class HostileDecoder(ImageFile.PyDecoder):
    def decode(self, buffer: bytes) -> tuple[int, int]:  # noqa: ARG002
        FAULTS[self.args[0]]()
        self.set_as_raw(bytes(self.state.xsize * self.state.ysize * 3))
        return -1, 0


class HostileImageFile(BmpImagePlugin.BmpImageFile):
    """A BMP, a format that every reader of images accepts; or a hostile file."""

    def _open(self) -> None:
        if self.fp.read(8) != b"HOSTILE ":
            self.fp.seek(0)
            super()._open()
            return
        self._mode, self._size = "RGB", (40, 30)
        self.tile = [ImageFile._Tile("hostile", (0, 0, 40, 30), 16, (self.fp.read(8).decode().strip(),))]


Image.register_open("BMP", HostileImageFile, lambda prefix: prefix.startswith((b"HOSTILE ", b"BM")))
Image.register_decoder("hostile", HostileDecoder)
