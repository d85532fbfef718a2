from pathlib import Path

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.results.sidecar import SidecarWriter


def caption(text: str = "new") -> Prediction:
    return Prediction("sub/a.b.jpg", "<CAPTION>", text=text, answer=text)


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("overwrite", "new"), ("append", "old new"), ("prepend", "new old")],
)
def test_what_happens_to_an_old_caption(tmp_path: Path, existing: str, expected: str) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "a.b.txt"
    path.write_text("\ufeffold\n", encoding="utf-8")
    writer = SidecarWriter(tmp_path, ".txt", existing)  # type: ignore[arg-type]
    for _ in range(2):  # written twice, as after a kill between caption and journal
        writer.write(caption())
    assert path.read_text(encoding="utf-8") == expected + "\n"


def test_skip_asks_only_for_images_without_a_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    asked = [Sample("a.jpg", tmp_path / "a.jpg", "t"), Sample("b.jpg", tmp_path / "b.jpg", "t")]
    assert [s.id for s in SidecarWriter(tmp_path, "txt", "skip").without_sidecar(asked)] == ["b.jpg"]
    assert len(list(SidecarWriter(tmp_path, "txt", "append").without_sidecar(asked))) == 2


def test_an_error_leaves_the_old_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    SidecarWriter(tmp_path, ".txt", "overwrite").write(Prediction("a.jpg", "t", error="torn"))
    assert (tmp_path / "a.txt").read_text() == "old"
