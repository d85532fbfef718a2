"""Decoder processes: the pixels and errors of threads, and an error for each image that crashes, hangs or grows."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from florence2.data.decoding.decode_image import DecodeOptions, ImageTooLargeError, decode_image
from florence2.data.decoding.decoder_process import DecoderStartError
from florence2.data.decoding.image_decoders import ImageDecoders
from florence2.data.image import ImageError
from florence2.errors import UserError
from tests.engine.images import image
from tests.faults.hostile_images import hostile_bytes, hostile_decoders

__all__ = ["hostile_decoders"]

OPTIONS = DecodeOptions(64, 64, Image.Resampling.BICUBIC.value, timeout=20)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def decoders() -> Iterator[ImageDecoders]:
    with ImageDecoders(memory=0.5) as made:
        yield made


def encoded(format_name: str = "PNG", size: tuple[int, int] = (70, 50), mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    image(3, size).convert(mode).save(file, format_name, **options)
    return file.getvalue()


def image_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x112] = 6
    deep = io.BytesIO()
    Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13).save(deep, "PNG")
    return {
        "plain.png": encoded(),
        "reduced.jpg": encoded("JPEG", (900, 700), quality=80),
        "turned.jpg": encoded("JPEG", (300, 200), exif=exif),
        "cmyk.jpg": encoded("JPEG", mode="CMYK"),
        "palette.gif": encoded("GIF", mode="P"),
        "alpha.webp": encoded("WEBP", mode="RGBA"),
        "deep.png": deep.getvalue(),
        "grey.tif": encoded("TIFF", mode="L", compression="tiff_lzw"),
    }


@pytest.mark.parametrize("side", [64, 768, 900])  # 900: more pixels than the shared memory has
def test_pixels_equal_those_of_this_process(
    decoders: ImageDecoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    monkeypatch.chdir(tmp_path)
    options = DecodeOptions(side, side, 3, full_decode=side == 900)
    for name, data in image_files().items():
        (tmp_path / name).write_bytes(data)
        expected = decode_image(data, options, name)
        for source in (data, tmp_path / name, Path(name)):
            decoded = decoders.decode(source, options, name)
            assert decoded.size == expected.size
            assert np.array_equal(decoded.pixels_HWC, np.array(expected.image)), (name, source)
    assert len(decoders.pids) == 1


def test_errors_equal_those_of_this_process(
    decoders: ImageDecoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut.jpg").write_bytes(encoded("JPEG")[:700])
    Path("text.png").write_bytes(b"no image")
    Path("large.png").write_bytes(encoded(size=(100, 100)))
    Path("folder.png").mkdir()
    os.mkfifo("pipe.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    for name in ("cut.jpg", "text.png", "large.png", "folder.png", "pipe.png", "gone.png"):
        errors = []
        for decode in (decode_image, decoders.decode):
            with pytest.raises(ImageError) as caught:
                decode(Path(name), OPTIONS, name)
            errors.append((caught.value.what, caught.value.hint))
        assert errors[0] == errors[1]
        assert name in errors[0][0]


def test_formats_and_pixels_are_limited(decoders: ImageDecoders) -> None:
    options = DecodeOptions(64, 64, 3, formats=("PNG", "GIF"), max_pixels=5000)
    assert decoders.decode(encoded(), options, "x").size == (70, 50)
    with pytest.raises(ImageError, match="x is not an image that can be read") as caught:
        decoders.decode(encoded("JPEG"), options, "x")
    assert caught.value.hint == "send PNG, GIF"
    with pytest.raises(ImageTooLargeError, match="x has more than 5,000 pixels"):
        decoders.decode(encoded(size=(100, 51)), options, "x")


@pytest.mark.usefixtures("hostile_decoders")
def test_each_fault_is_an_error_of_its_image_alone(decoders: ImageDecoders) -> None:
    errors = {
        "crash": "the decoder of x crashed (signal 11: Segmentation fault; free(): invalid pointer)",
        "hang": "x could not be decoded in 0.4 s of processor time",
        "wait": "x could not be decoded in 2 s: its decoder waited, for a disk or a share that does not answer, "
        "or for a processor",
        "grow": "x needs more than 0.5 GiB of memory to be decoded",
    }
    for fault, message in errors.items():
        options = DecodeOptions(64, 64, 3, timeout=0.4 if fault in {"hang", "wait"} else 20)
        decoders.decode(encoded(), OPTIONS, "good")
        before = set(decoders.pids)
        with pytest.raises(ImageError) as caught:
            decoders.decode(hostile_bytes(fault), options, "x")
        assert caught.value.what == message
        assert not before & set(decoders.pids)
    assert decoders.decode(hostile_bytes("chatter"), OPTIONS, "x").size == (40, 30)
    assert decoders.decode(encoded(), OPTIONS, "good").size == (70, 50)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")
def test_a_process_without_processor_time_decodes_its_image_later(decoders: ImageDecoders) -> None:
    options = DecodeOptions(64, 64, 3, timeout=0.5)
    decoders.decode(encoded(), options, "x")
    [pid] = decoders.pids
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(decoders.decode, encoded(), options, "x")
        time.sleep(1)
        os.kill(pid, signal.SIGCONT)
        assert waiting.result().size == (70, 50)
    assert decoders.pids == [pid]


@pytest.mark.skipif(sys.platform == "win32", reason="stderr is not read there")
def test_what_a_decoder_writes_to_stderr_explains_its_error(
    decoders: ImageDecoders, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = bytearray(encoded("TIFF", compression="tiff_lzw"))
    damaged[8:300] = bytes(292)
    with pytest.raises(ImageError, match=r"x cannot be read: decoder error -2 \(.*not yet in table.*\)"):
        decoders.decode(bytes(damaged), OPTIONS, "x")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.usefixtures("hostile_decoders")
def test_an_image_whose_process_somebody_kills_is_decoded_again(decoders: ImageDecoders) -> None:
    decoders.decode(encoded(), OPTIONS, "good")
    [first] = decoders.pids
    os.kill(first, signal.SIGKILL)  # an idle one
    assert decoders.decode(encoded(), OPTIONS, "good").size == (70, 50)
    [second] = decoders.pids
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(decoders.decode, hostile_bytes("hang"), DecodeOptions(64, 64, 3, timeout=2), "x")
        time.sleep(0.3)
        os.kill(second, signal.SIGKILL)  # one at work
        with pytest.raises(ImageError, match="x could not be decoded in 2 s"):
            hanging.result()
    assert second not in decoders.pids


@pytest.mark.usefixtures("hostile_decoders")
def test_close_ends_processes_at_work(decoders: ImageDecoders) -> None:
    with ThreadPoolExecutor(2) as threads:
        decoding = [threads.submit(decoders.decode, hostile_bytes("hang"), OPTIONS, "x") for _ in range(2)]
        while len(decoders.pids) < 2:
            time.sleep(0.02)
        time.sleep(0.3)
        start = time.monotonic()
        decoders.close()
        for future in decoding:
            with pytest.raises(ImageError, match="x was not decoded: its decoder was closed"):
                future.result()
    assert time.monotonic() - start < 5
    assert decoders.pids == []
    with pytest.raises(UserError, match="closed"):
        decoders.decode(encoded(), OPTIONS, "x")


@on_linux
@pytest.mark.usefixtures("hostile_decoders")
def test_nothing_is_left_open(decoders: ImageDecoders) -> None:
    decoders.decode(encoded(), OPTIONS, "x")
    before = num_files()
    for _ in range(5):
        with pytest.raises(ImageError, match="crashed"):
            decoders.decode(hostile_bytes("crash"), OPTIONS, "x")
        decoders.decode(encoded(), OPTIONS, "x")
    assert num_files() == before


@on_linux
@pytest.mark.long
def test_memory_and_files_stay_as_they_are_over_20_000_images(decoders: ImageDecoders) -> None:
    files = [encoded(name, (32, 24)) for name in ("PNG", "JPEG", "WEBP", "GIF")]

    def decode(first: int) -> None:
        for number in range(first, first + 100):
            decoders.decode(files[number % len(files)], OPTIONS, str(number))

    def state() -> tuple[int, int, list[int]]:
        rss = [psutil.Process(pid).memory_info().rss for pid in (os.getpid(), *decoders.pids)]
        return sum(rss), num_files(), sorted(decoders.pids)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(decode, range(0, 1000, 100)))
        before = state()
        list(threads.map(decode, range(0, 20_000, 100)))
        after = state()
    assert after[1:] == before[1:]
    assert after[0] - before[0] < 4 * 2**20


def test_a_process_that_cannot_start_is_an_error_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no library >&2; exit 3\n")
    script.chmod(0o755)
    for path, message in ((script, "ended at its start: no library"), (tmp_path / "gone", "cannot be started")):
        monkeypatch.setattr(sys, "executable", str(path))
        with ImageDecoders() as decoders, pytest.raises(DecoderStartError, match=message) as caught:
            decoders.decode(encoded(), OPTIONS, "x")
        assert caught.value.hint == "pass `--image_workers threads`"


SCRIPT = """
import sys, threading, time
from pathlib import Path
from florence2.data.decoding.decode_image import DecodeOptions
from florence2.data.decoding.image_decoders import ImageDecoders

decoders = ImageDecoders()
print("started by", __name__)
options = DecodeOptions(64, 64, 3, timeout=2)
print(decoders.decode(Path(sys.argv[1]), options, "x").size, *decoders.pids, flush=True)
if len(sys.argv) > 2:
    threading.Thread(target=decoders.decode, args=(Path(sys.argv[2]), options, "x")).start()
    time.sleep(60)
"""


def test_a_script_needs_no_main_guard_and_ends_with_its_processes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "-W", "error", "script.py", "a.png"]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.startswith("started by __main__\n(70, 50) ")
    assert run.stdout.count("started by") == 1
    assert run.stderr == ""
    assert not is_running(int(run.stdout.split()[-1]))


@on_linux
@pytest.mark.usefixtures("hostile_decoders")
@pytest.mark.parametrize("fault", ["", "hang"])
def test_no_process_outlives_a_killed_parent(tmp_path: Path, fault: str) -> None:
    """An idle one ends with its pipe, one that hangs by its time limit."""
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "hostile.png").write_bytes(hostile_bytes("hang"))
    words = [sys.executable, "-c", SCRIPT, "a.png", "hostile.png" if fault else "a.png"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        decoder = int(parent.stdout.readline().split()[-1])
        time.sleep(0.5)
        assert is_running(decoder)
        parent.kill()
    deadline = time.monotonic() + 10
    while is_running(decoder):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def num_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_threads_decode_at_the_same_time(decoders: ImageDecoders) -> None:
    barrier = threading.Barrier(3)

    def decode(_: int) -> int:
        barrier.wait()
        return sum(decoders.decode(encoded(), OPTIONS, "x").size[0] for _ in range(20))

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(decode, range(3))) == [1400] * 3
    assert 1 <= len(decoders.pids) <= 3
