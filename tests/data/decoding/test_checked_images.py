"""What a check found good is not opened again, unless it changed; whatever happens to the memory of it."""

import logging
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from florence2.data.decoding import checked_images
from florence2.data.decoding.checked_images import CheckedImages
from florence2.data.decoding.image_decoders import ImageDecoders
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.sample import ResolvedDataset
from florence2.data.validate import check_images
from florence2.errors import DatasetError
from florence2.files import cache_folder
from tests.data.images import captioned

BEFORE = time.time_ns() - 3600 * 10**9


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLORENCE2_CACHE", str(tmp_path / "cache"))
    for number in range(5):
        make(tmp_path / "photos" / f"{number}.jpg")
    return tmp_path / "photos"


def make(path: Path, time_ns: int = BEFORE) -> None:
    captioned(path, f"boat {path.stem}")
    os.utime(path, ns=(time_ns, time_ns))


def spoil(path: Path) -> None:
    """Damage an image, so that neither size nor time of its file change."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def check(photos: Path, *, decode_all: bool = False) -> tuple[ResolvedDataset, int]:
    """Check as a start of a training does; count the images that were not opened."""
    known = CheckedImages.of_dataset(str(photos))
    dataset = resolve_dataset(str(photos), DatasetOptions("caption"))
    return check_images(dataset, decode_all=decode_all, checked_images=known), known.num_unchanged


def memory() -> Path:
    folder = cache_folder()
    assert folder
    (path,) = (folder / "checked_images").iterdir()
    return path


def test_unchanged_images_are_not_opened_and_changed_ones_are(photos: Path) -> None:
    first, num_unchanged = check(photos)
    assert num_unchanged == 0
    spoil(photos / "1.jpg")
    second, num_unchanged = check(photos)  # so nothing was opened
    assert num_unchanged == 5
    assert [sample.key for sample in second.samples] == [sample.key for sample in first.samples]
    os.utime(photos / "1.jpg")
    with pytest.raises(DatasetError, match=r"1\.jpg"):
        check(photos)
    make(photos / "1.jpg")
    make(photos / "new.jpg")
    (photos / "0.jpg").unlink()
    (photos / "0.txt").unlink()
    assert check(photos)[1] == 3  # what was found good in the refused start was saved; 1 is as new as new.jpg
    assert check(photos)[1] == 5
    (photos / "new.jpg").write_bytes((photos / "new.jpg").read_bytes()[:-40])
    os.utime(photos / "new.jpg", ns=(BEFORE, BEFORE))  # another size alone
    with pytest.raises(DatasetError, match=r"new\.jpg"):
        check(photos)


def test_a_full_check_counts_as_one_of_headers_but_not_the_other_way(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    decode = ImageDecoders.decode

    def count(self: ImageDecoders, source: Path, *rest: object) -> object:
        decoded.append(source)
        return decode(self, source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDecoders, "decode", count)
    check(photos)
    assert check(photos, decode_all=True)[1] == 0
    assert len(decoded) == 5
    assert check(photos)[1] == check(photos, decode_all=True)[1] == 5
    assert len(decoded) == 5


def test_files_that_changed_a_moment_ago_are_not_remembered(photos: Path) -> None:
    make(photos / "2.jpg", time.time_ns())
    check(photos)
    assert check(photos)[1] == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "emptied", "another version"])
def test_a_damaged_memory_is_ignored_and_written_anew(
    photos: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    check(photos)
    path, content = memory(), memory().read_bytes()
    if damage == "another version":
        monkeypatch.setattr(checked_images.Image, "MAX_IMAGE_PIXELS", 10**9)
    else:
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        path.write_bytes({"cut": content[:-5], "flipped": flipped, "foreign": b"{}", "emptied": b""}[damage])
    with caplog.at_level(logging.INFO, "florence2"):
        assert check(photos)[1] == 0
    expected = (
        []
        if damage in ("emptied", "another version")
        else [f"{path} is damaged: all images are checked again, and it is written anew"]
    )
    assert caplog.messages == expected
    assert check(photos)[1] == 5


def test_the_memory_is_private_small_and_without_names(photos: Path) -> None:
    check(photos)
    content = memory().read_bytes()
    assert len(content) < 200
    assert b"jpg" not in content
    if sys.platform != "win32":
        assert stat.S_IMODE(memory().stat().st_mode) == 0o600
        assert stat.S_IMODE(memory().parent.stat().st_mode) == 0o700
    before = memory().stat().st_ino
    os.utime(memory(), (0, 0))
    check(photos)
    assert memory().stat().st_ino == before  # nothing to write
    assert memory().stat().st_mtime > time.time() - 60  # but it is in use


def test_files_of_datasets_that_nobody_uses_are_removed(photos: Path) -> None:
    check(photos)
    unused = memory().with_name("0" * 32)
    unused.write_bytes(b"")
    os.utime(unused, (0, 0))
    make(photos / "new.jpg")
    check(photos)
    assert not unused.exists()


@pytest.mark.parametrize("obstacle", ["a file", "no folder"])
def test_without_a_folder_for_it_nothing_is_remembered(
    photos: Path, obstacle: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "a file":
        (photos.parent / "cache").write_text("")
    else:
        monkeypatch.delenv("FLORENCE2_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    with caplog.at_level(logging.INFO, "florence2"):
        assert [check(photos)[1], check(photos)[1]] == [0, 0]
    assert [line.endswith("the next start checks all images again") for line in caplog.messages] == (
        [True, True] if obstacle == "a file" else []
    )


def test_two_checks_at_once_leave_a_complete_memory(photos: Path) -> None:
    threads = [threading.Thread(target=check, args=(photos,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert check(photos)[1] == 5


PROGRAM = """
import sys
from pathlib import Path
from florence2.data.decoding.checked_images import CheckedImages
known = CheckedImages(Path(sys.argv[1]))
for number in range(50_000):
    known.add(number.to_bytes(16, "big"), decoded=False)
print("ready", flush=True)
while True:
    known.save()
    known.add(number.to_bytes(16, "big"), decoded=True)
    number -= 1
"""


def test_a_kill_leaves_a_complete_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "memory"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.05)
        process.kill()
    known = CheckedImages(path)
    assert known.is_good((0).to_bytes(16, "big"), decoded=False)
    assert not caplog.messages
