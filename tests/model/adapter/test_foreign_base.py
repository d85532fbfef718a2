"""Adapters whose base is not on this machine, or whose weights are not finite."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from florence2.errors import CheckpointError
from florence2.model.load import load

PREFIX = "base_model.model.model.language_model.decoder.layers.0.fc1"


def write_adapter(folder: Path, base: str | None, value: float = 0.0) -> Path:
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 1, "lora_alpha": 1, "target_modules": ["fc1"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {f"{PREFIX}.lora_A.weight": torch.full((1, 4), value), f"{PREFIX}.lora_B.weight": torch.zeros(4, 1)}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("base", "what"),
    [
        (None, "does not name its base"),  # F2, null
        ("/content/florence2", "needs its base `/content/florence2`: there is no folder"),  # F2, another machine
    ],
)
def test_a_base_that_is_not_here_is_refused_with_the_file_to_edit(tmp_path: Path, base: str | None, what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as caught:
        load(write_adapter(tmp_path, base), device="cpu")
    assert "pass `--base_model`" in caught.value.hint


def test_an_adapter_that_is_not_finite_is_refused_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"layers\.0\.fc1\.lora_A"):
        load(write_adapter(tmp_path, "demo", float("nan")), device="cpu")
