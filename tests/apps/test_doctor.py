"""`florence2 doctor`: sound and faulty models and datasets, choices equal to those of `predict`, missing packages."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from florence2 import config
from florence2.api import check_dataset
from florence2.cli.program import main
from florence2.recipes.create_engine import create_engine
from florence2.recipes.predict_spec import PredictSpec

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-legacy"


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Run the command in this process, and return its exit code and its report."""
    code = main(["doctor", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(
        TINY, folder, ignore=shutil.ignore_patterns("expected*", "exported", "adapter", "pytorch_model.bin")
    )
    return folder


@pytest.fixture
def adapter(tmp_path: Path, checkpoint: Path) -> Path:
    folder = tmp_path / "adapter"
    shutil.copytree(TINY / "adapter", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(checkpoint)}))
    return folder


def test_choices_equal_those_of_predict(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    code, report = doctor(capsys, str(checkpoint))
    assert code == 0
    assert report["auto"]["model"] == str(checkpoint)
    chosen = {choice["flag"]: choice["value"] for choice in report["auto"]["predict"]}
    settings = config.PredictSettings(config.WeightsSettings(str(checkpoint)), config.InputSettings("."))
    spec = PredictSpec.resolve(settings)
    with create_engine(spec.engine, 1) as engine:
        assert chosen["--device"] == str(engine.device)
        assert chosen["--dtype"] == str(engine.model.dtype).removeprefix("torch.")
        assert chosen["--batch_size"] == engine.stats.slots
    assert (chosen["--engine"], chosen["--num_workers"]) == (spec.engine.kind, spec.engine.config.num_workers)


def test_sound_models_and_their_facts(capsys: pytest.CaptureFixture[str], checkpoint: Path, adapter: Path) -> None:
    code, report = doctor(capsys, str(checkpoint))
    facts = report["checked"]
    assert (code, facts["kind"], facts["sound"], facts["layout"]) == (0, "checkpoint", True, "Microsoft")
    assert facts["weights"] == [{"file": "model.safetensors", "bytes": 772_896, "tensors": 274, "dtypes": {"F16": 274}}]
    assert (facts["vocabulary"], facts["image_size"], facts["image_tokens"]) == (1501, [96, 96], 10)
    code, report = doctor(capsys, str(adapter))
    facts = report["checked"]
    assert (code, facts["kind"], facts["rank"], facts["base"]) == (0, "adapter", 4, str(checkpoint))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def rename_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["vision_tower.convs.0.proj.wieght"] = state.pop("vision_tower.convs.0.proj.weight")
    save_file(state, folder / "model.safetensors")


def write_nan(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["image_proj_norm.bias"][3] = torch.nan
    save_file(state, folder / "model.safetensors")


def write_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (truncate, "is damaged"),
        (rename_tensor, "weights missing"),
        (write_nan, "weights not finite"),
        (write_pointer, "git-lfs pointer"),
        (remove_tokenizer, "`tokenizer.json`"),
    ],
)
def test_faulty_checkpoint_is_a_problem(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, damage: Any, what: str
) -> None:
    damage(checkpoint)
    code, report = doctor(capsys, str(checkpoint))
    assert code == 1
    assert not report["checked"]["sound"]
    assert len(report["problems"]) == 1
    assert what in report["problems"][0]["what"]
    assert report["problems"][0]["hint"]
    assert report["auto"]["model"] == "demo"  # which predicts where the checkpoint cannot


def test_adapter_without_its_base_is_a_problem(
    capsys: pytest.CaptureFixture[str], adapter: Path, checkpoint: Path
) -> None:
    shutil.rmtree(checkpoint)
    code, report = doctor(capsys, str(adapter))
    assert code == 1
    assert f"needs its base `{checkpoint}`" in report["problems"][0]["what"]


def test_dataset_is_checked_as_data_check_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red square", encoding="utf-8")
    code, report = doctor(capsys, str(tmp_path))
    assert (code, report["checked"]["kind"], report["checked"]["samples"]) == (0, "dataset", 1)
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "b.txt").write_text("a blue square", encoding="utf-8")
    code, report = doctor(capsys, str(tmp_path))
    issues = check_dataset(dataset=str(tmp_path)).issues
    assert (code, len(report["problems"]), len(issues)) == (1, 1, 1)
    assert issues[0].what in report["problems"][0]["what"]


def test_path_that_holds_nothing_is_a_problem(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert doctor(capsys, str(tmp_path / "nothing"))[0] == 1
    code, report = doctor(capsys, "nobody/nothing")  # never downloaded
    assert (code, report["checked"]["kind"]) == (1, "checkpoint")
    hint = doctor(capsys, "nothing_of_this_name")[1]["problems"][0]["hint"]
    assert "run `florence2 data check nothing_of_this_name`, which downloads it" in hint


def test_missing_packages_are_named_with_their_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = tmp_path / "florence2-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    rows = ["torch>=2.8", "pillow>=999", "no-such-package>=1; extra == 'serve'", "torch>=2; extra == 'mcp'"]
    lines = ["Metadata-Version: 2.1", "Name: florence2", "Version: 0.1.0", *(f"Requires-Dist: {row}" for row in rows)]
    metadata.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))  # the installed package, to importlib.metadata
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert "problem: florence2 requires pillow>=999 (found" in output
    assert "not installed: serve (`florence2 serve`): pip install 'florence2[serve]'" in output
    assert "extras installed: mcp\n" in output
    assert "instruction sets:" in output
