import json
from pathlib import Path

import pytest

from florence2.cli import main
from florence2.demo.show import _clear


def test_the_demo_teaches_a_new_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # `demo` names the bundled model all the same
    assert main(["demo"]) == 0
    left = tmp_path / "florence2-demo"
    truth = {path.name: path.with_suffix(".txt").read_text().strip() for path in (left / "held_out").glob("*.png")}
    said = [json.loads(line) for line in (left / "captions.jsonl").read_text().splitlines()]
    assert len(said) == len(truth) == 16
    assert sum(truth[row["file_name"]] == row["text"] for row in said) >= 0.8 * 16
    assert json.loads((left / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "demo"
    page = (left / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 16
    assert "http" not in page, "the page needs no other file"
    _clear(left)
    assert not left.exists(), "a demo takes the place of an earlier one"


def test_the_demo_takes_nobodys_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--output_dir", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_images_are_made_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    assert main(["demo", "--make-dataset", str(folder), "--num_samples", "3", "--style", "tags"]) == 0
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("*.txt"))) == 3
    assert (folder / "od.jsonl").exists()
