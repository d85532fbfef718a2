"""Adapters with the settings of newer and older versions of peft, and with keys in other forms."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from florence2.errors import CheckpointError
from florence2.model.adapter import lora
from florence2.model.load import load
from tests.model.adapter.test_lora import TINY, edit_json, logits, randomize_lora, tiny

# The keys that peft 0.2 wrote.
_OLD_KEYS = (
    *("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "lora_dropout"),
    *("modules_to_save", "peft_type", "r", "target_modules", "task_type"),
)


def edit_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "adapter_config.json", **values)


def keep_old_keys(folder: Path) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    old = {key: value for key, value in config.items() if key in _OLD_KEYS}
    path.write_text(json.dumps(old | {"enable_lora": None, "merge_weights": True}))


def rename_magnitudes(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    renamed = {key.replace("_magnitude_vector", "_magnitude_vector.weight"): value for key, value in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, path)


def write_adapter(folder: Path, **options: Any) -> Path:
    model = randomize_lora(lora.add_lora(tiny(), rank=2, alpha=4, **options))
    lora.save_adapter(model, folder, base=str(TINY))
    return folder


@torch.no_grad()
def merged_logits(folder: Path) -> torch.Tensor:
    result: torch.Tensor = logits(load(folder, device="cpu")[0])
    return result


SAME: dict[str, tuple[dict[str, Any], Callable[[Path], None]]] = {
    "regular expression": (
        {},
        edit_config(target_modules=r".*\.(qkv|fc1|fc2|q_proj|k_proj|v_proj|out_proj|proj)"),
    ),  # F3
    "names of another peft's DoRA": ({"use_dora": True, "target_modules": ["qkv", "fc1"]}, rename_magnitudes),  # F3
    "keys of old peft": ({}, keep_old_keys),  # F1
    "unknown keys without effect": ({}, edit_config(new_config=None, use_new=False, new_pattern={})),  # F1
    "layers of all": ({}, edit_config(layers_to_transform=[0, 1], layers_pattern="layers")),  # F3
}


@pytest.mark.parametrize("case", SAME)
def test_a_rewritten_config_gives_the_same_model(case: str, tmp_path: Path) -> None:
    options, rewrite = SAME[case]
    folder = write_adapter(tmp_path / "adapter", **options)
    before = merged_logits(folder)
    rewrite(folder)
    assert torch.equal(merged_logits(folder), before)


@torch.no_grad()
def test_a_saved_output_layer_is_used(tmp_path: Path) -> None:
    """`modules_to_save` with the tied output layer changes the output, and not the input embedding."""  # F3
    model = randomize_lora(lora.add_lora(tiny(), rank=2, alpha=4, target_modules=["fc1"], modules_to_save=["lm_head"]))
    for name, weights in model.named_parameters():
        if "lm_head.modules_to_save" in name:
            weights.data += 0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
    lora.save_adapter(model, tmp_path / "adapter", base=str(TINY))
    loaded, _ = load(tmp_path / "adapter", device="cpu")
    assert (logits(loaded) - logits(model.eval())).abs().max() < 1e-4
    assert not torch.equal(loaded.lm_head.weight, loaded.model.language_model.shared.weight)


def test_unknown_keys_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tmp_path / "adapter")
    before = merged_logits(folder)
    edit_json(folder / "adapter_config.json", new_group_size=16, peft_version="9.1.0")  # F1, newer peft
    monkeypatch.setattr(logging.getLogger("florence2"), "propagate", True)
    with caplog.at_level("WARNING", logger="florence2"):
        assert torch.equal(merged_logits(folder), before)
    assert "written by peft 9.1.0, has settings that peft" in caplog.text
    assert "`new_group_size` (16); ignored" in caplog.text


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"use_new": True}, "sets `use_new`, which peft .* does not know"),  # F1, newer peft
        ({"new_config": {"size": 3}}, "sets `new_config`, which peft .* does not know"),  # F1, newer peft
        ({"alora_invocation_tokens": [1, 2]}, "sets `alora_invocation_tokens`, which is not supported"),
        ({"trainable_token_indices": [1, 2]}, "sets `trainable_token_indices`, which is not supported"),
        ({"r": "2"}, "does not fit its base: .*'str' and 'int'"),
    ],
)
def test_settings_that_change_what_an_adapter_does_are_refused(
    values: dict[str, Any], what: str, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter")
    edit_json(folder / "adapter_config.json", **values)
    with pytest.raises(CheckpointError, match=what) as caught:
        load(folder, device="cpu")
    assert "adapter_config.json" in caught.value.hint or "plain LoRA" in caught.value.hint
