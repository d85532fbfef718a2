from pathlib import Path

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.results.sidecar import SidecarWriter


def caption(text: str = "new") -> Prediction:
    return Prediction("sub/a.b.jpg", "<CAPTION>", text=text)


@pytest.mark.parametrize(
    ("if_exists", "expected"),
    [("overwrite", "new"), ("append", "old new"), ("prepend", "new old")],
)
def test_existing_caption_file_is_replaced_or_extended(tmp_path: Path, if_exists: str, expected: str) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "a.b.txt"
    path.write_text("\ufeffold\n", encoding="utf-8")
    writer = SidecarWriter(tmp_path, ".txt", if_exists)  # type: ignore[arg-type]
    for _ in range(2):  # twice, as after a kill between caption file and journal
        writer.write(caption())
    assert path.read_text(encoding="utf-8") == expected + "\n"


def test_skip_selects_images_without_caption_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    samples = [Sample("a.jpg", tmp_path / "a.jpg", "t"), Sample("b.jpg", tmp_path / "b.jpg", "t")]
    for if_exists, expected in (("skip", [0, 1]), ("append", [1, 1])):
        mask = bytearray([1, 1])
        SidecarWriter(tmp_path, "txt", if_exists).mask_existing(samples, mask)
        assert list(mask) == expected


def test_error_leaves_existing_caption_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    SidecarWriter(tmp_path, ".txt", "overwrite").write(Prediction("a.jpg", "t", error="truncated"))
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("if_exists", "old", "expected"),
    [
        ("append", "a tomcat", "a tomcat cat"),  # cases A20: the end of a word is not the caption
        ("append", "a red cat", "a red cat"),  # cases A20: may be this run's own text, written before a kill
        ("prepend", "catalog", "cat catalog"),  # cases A20
    ],
)
def test_text_that_ends_in_the_caption_is_not_extended(tmp_path: Path, if_exists: str, old: str, expected: str) -> None:
    (tmp_path / "a.txt").write_text(old)
    SidecarWriter(tmp_path, ".txt", if_exists).write(Prediction("a.jpg", "t", text="cat"))  # type: ignore[arg-type]
    assert (tmp_path / "a.txt").read_text() == expected + "\n"
