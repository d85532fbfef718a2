"""The dtype of a training: chosen by the size of the model on a CPU, recorded with the run, the same after a resume."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Florence2ForConditionalGeneration

from florence2 import devices
from florence2.config import TrainSettings
from florence2.errors import UserError
from florence2.model.load import load
from florence2.model.storage.run_metadata import read_run_metadata
from florence2.recipes.training_setup.training_spec import TrainingSpec
from florence2.settings_io import settings_from_dict
from tests.tiny import tiny_config, tiny_processor
from tests.training.images import run, save_calm, save_photos

HUB = Path(__file__).parents[1] / "fixtures" / "hub"
VALUES: dict[str, Any] = {"dropout": 0.0, "epochs": 2, "save_every_n_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dtype")
    save_photos(folder / "photos", number=4)
    save_calm(folder / "model")
    run(folder, "half", dtype="bfloat16", **VALUES)
    return folder


def set_native_bfloat16(monkeypatch: pytest.MonkeyPatch, is_native: bool) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: is_native)


def resolve(**values: Any) -> TrainingSpec:
    paths = {"dataset": "d", "output_dir": "o", "device": "cpu"}
    return TrainingSpec.resolve(settings_from_dict(TrainSettings, paths | values))


@pytest.mark.parametrize(
    ("values", "is_native", "dtype", "weights"),
    [
        ({"model_id": str(HUB / "microsoft-base")}, True, torch.bfloat16, torch.bfloat16),  # 231 million parameters
        ({"model_id": str(HUB / "community-large")}, True, torch.bfloat16, torch.bfloat16),  # transformers' layout
        ({"model_id": str(HUB / "microsoft-base")}, False, torch.float32, torch.float32),  # a CPU without it
        ({"model_id": str(HUB / "microsoft-base"), "dtype": "float32"}, True, torch.float32, torch.float32),
        ({"model_id": str(HUB / "microsoft-base"), "rank": 0}, True, torch.bfloat16, torch.float32),  # trained weights
        ({"model_id": "demo"}, True, torch.float32, torch.float32),  # 5 million
    ],
)
def test_large_models_are_trained_in_bfloat16_on_a_cpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], is_native: bool, dtype: torch.dtype, weights: torch.dtype
) -> None:
    set_native_bfloat16(monkeypatch, is_native)
    spec = resolve(**values)
    assert (spec.dtype, spec.base.dtype) == (dtype, weights)


def test_an_adapter_counts_as_its_base(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    set_native_bfloat16(monkeypatch, True)
    spec = resolve(model_id=str(folder / "half"))
    model, _ = load(folder / "model", device="cpu")
    assert spec.base.count_parameters() == model.num_parameters()
    assert spec.dtype == torch.float32


@pytest.mark.long
@pytest.mark.skipif(not devices.has_bfloat16(torch.device("cpu")), reason="this CPU has no native bfloat16 support")
def test_a_model_of_real_size_is_trained_in_bfloat16_by_default(folder: Path, tmp_path: Path) -> None:
    processor = tiny_processor()
    config = tiny_config(processor.image_token_id)
    text = config.text_config
    text.d_model, text.encoder_ffn_dim, text.decoder_ffn_dim, text.encoder_layers = 1024, 8192, 8192, 3
    config.vision_config.projection_dim = 1024
    model = Florence2ForConditionalGeneration(config)
    assert model.num_parameters() > devices.LARGE_MODEL_PARAMETERS
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    shutil.copytree(folder / "photos", tmp_path / "photos")
    metadata = read_run_metadata(run(tmp_path))
    assert metadata is not None
    assert (metadata.settings["dtype"], metadata.dtype) == ("auto", "bfloat16")


def resume(folder: Path, name: str, **values: Any) -> Path:
    if not (folder / name).exists():
        shutil.copytree(folder / "half" / "checkpoint-1", folder / name / "checkpoint-1")
    return run(folder, name, **(VALUES | {"resume": "auto"} | values))


def test_a_run_in_bfloat16_resumes_exactly(folder: Path) -> None:
    output = resume(folder, "resumed", dtype="bfloat16")
    states = [load_file(path / "adapter_model.safetensors") for path in (output, folder / "half")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


@pytest.mark.parametrize(
    ("dtype", "is_native", "hint"),
    [
        ("float32", True, "pass `--dtype bfloat16`, or another `--output_dir` with `--model_id "),
        ("auto", True, "pass `--dtype bfloat16`, or another"),  # a small model
        ("auto", False, "pass `--dtype bfloat16` (this CPU has no native bfloat16 support and is several times slower"),
    ],
)
def test_another_dtype_is_refused(
    monkeypatch: pytest.MonkeyPatch, folder: Path, dtype: str, is_native: bool, hint: str
) -> None:
    set_native_bfloat16(monkeypatch, is_native)
    with pytest.raises(UserError, match="was trained in bfloat16, and this run would go on in float32 on cpu") as error:
        resume(folder, "refused", dtype=dtype)
    assert hint in error.value.hint
    assert [path.name for path in (folder / "refused").iterdir()] == ["checkpoint-1"]


def test_a_checkpoint_of_an_earlier_version_names_no_dtype(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("florence2"), "propagate", True)
    checkpoint = folder / "earlier" / "checkpoint-1"
    shutil.copytree(folder / "half" / "checkpoint-1", checkpoint)
    path = checkpoint / "training_settings.json"
    values = json.loads(path.read_text())
    del values["dtype"]
    path.write_text(json.dumps(values | {"settings": values["settings"] | {"dtype": "auto"}}))
    resume(folder, "earlier")
    assert "does not name the dtype it was trained in; this run goes on in float32" in caplog.text
