"""`florence2 demo` by the command line."""

import json
from pathlib import Path

import pytest

from florence2.cli.program import main
from florence2.demo.show import _remove_earlier_demo


def test_demo_trains_a_new_caption_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # `demo` names the bundled model all the same
    assert main(["demo"]) == 0
    output = tmp_path / "florence2-demo"
    references = {
        path.name: path.with_suffix(".txt").read_text().strip() for path in (output / "held_out").glob("*.png")
    }
    predictions = [json.loads(line) for line in (output / "captions.jsonl").read_text().splitlines()]
    assert len(predictions) == len(references) == 16
    assert sum(references[row["file_name"]] == row["text"] for row in predictions) >= 0.8 * 16
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "demo"
    page = (output / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 16
    assert "http" not in page, "the page must not need another file"
    _remove_earlier_demo(output)
    assert not output.exists(), "a demo replaces an earlier one"


def test_demo_keeps_foreign_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--output_dir", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_demo_writes_a_dataset_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    assert main(["demo", "--make-dataset", str(folder), "--num_samples", "3", "--style", "tags"]) == 0
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("*.txt"))) == 3
    assert (folder / "od.jsonl").exists()
