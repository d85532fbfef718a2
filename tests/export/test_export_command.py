"""The command: its summary, the model card, the images of the comparison, and what it refuses."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from florence2 import api
from florence2.cli.program import main
from florence2.errors import UserError
from florence2.model.storage.run_metadata import RunMetadata, write_run_metadata
from florence2.training.saving.model_card import write_model_card
from tests.export.adapters import trained_adapter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training: an adapter, its metadata and its model card."""
    adapter = trained_adapter(tmp_path_factory.mktemp("run"))
    metadata = RunMetadata(
        base="microsoft/Florence-2-base-ft",
        revision=None,
        task="<CAPTION>",
        prompt="What does the image describe?",
        settings={"rank": 3},
        data={"num_images": 7},
        scores={"bleu": 0.5},
    )
    write_run_metadata(adapter, metadata)
    write_model_card(adapter, metadata)
    return adapter


def card_of(folder: Path) -> tuple[dict[str, object], str]:
    _, header, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def test_card_travels_along(tmp_path: Path, run: Path) -> None:
    api.export(model_path=str(run), output_path=str(tmp_path / "merged"))
    header, body = card_of(tmp_path / "merged")
    assert header == {
        "base_model": "microsoft/Florence-2-base-ft",
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "image-text-to-text",
        "tags": ["florence-2"],
    }
    assert "AutoModelForImageTextToText" in body
    assert body.rstrip().endswith((run / "README.md").read_text().split("---\n", 2)[2].strip())
    assert str(tmp_path) not in body


def test_model_without_a_card_gets_one(tmp_path: Path, run: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in run.iterdir():
        if path.name != "README.md":
            (bare / path.name).write_bytes(path.read_bytes())
    api.export(model_path=str(bare), output_path=str(tmp_path / "out"), to="adapter-microsoft")
    header, body = card_of(tmp_path / "out")
    assert (header["library_name"], header["tags"]) == ("peft", ["florence-2", "lora"])
    assert "fine-tuned from `microsoft/Florence-2-base-ft`" in body
    assert "| num_images | 7 |" in body


def test_summary_as_json_equals_the_file(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model_path", str(run), "--output_path", "out", "--to", "microsoft", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((tmp_path / "out" / "export.json").read_text())
    assert printed["comparison"] == {
        "max_difference": 0.0,
        "num_equal_tokens": printed["comparison"]["num_tokens"],
        "num_tokens": printed["comparison"]["num_tokens"],
        "num_images": 3,
    }
    assert (printed["target"], printed["dtype"], printed["output_path"]) == ("microsoft", "float32", "out")
    assert saved == printed | {"model": "adapter", "florence2": saved["florence2"]}
    sizes = [
        path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name not in ("README.md", "export.json")
    ]
    assert (printed["num_files"], printed["num_bytes"]) == (len(sizes), sum(sizes))


def test_own_images_are_compared(tmp_path: Path, run: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(5):
        Image.new("RGB", (30, 20), (50 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    options = {"model_path": str(run), "output_path": str(tmp_path / "out")}
    result = api.export(**options, images=str(tmp_path / "images"))
    assert result.comparison.num_images == 3
    (tmp_path / "images" / "0.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"0\.png"):
        api.export(**options, images=str(tmp_path / "images"), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]
    result = api.export(**options, images=str(tmp_path / "images" / "1.png"), overwrite=True)
    assert result.comparison.num_images == 1


def test_export_onto_its_model_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "--model_path", str(run), "--output_path", str(run), "--overwrite"]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: `{run}` holds the model that is exported",
        "hint: pass another `--output_path`",
    ]
