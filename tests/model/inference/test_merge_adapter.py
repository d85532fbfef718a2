"""An adapter that is merged without peft gives peft's weights to the last bit, or is left to peft."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from florence2.errors import UserError
from florence2.model.adapter import lora
from florence2.model.inference.load_inference_model import load_inference_model
from florence2.model.load import load
from tests.model.adapter.test_adapter_settings import edit_config, keep_old_keys, rename_magnitudes
from tests.model.adapter.test_lora import FAULTS, TINY, adapter, add_lora, randomize_lora, tiny  # noqa: F401
from tests.model.inference.test_load_inference_model import modules_after

CPU = torch.device("cpu")
MERGED: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True, "init": "gaussian"},
    "dora": {"use_dora": True, "target_modules": ["qkv", "conv", "fc2"]},
    "dora of the output layer, rslora": {"use_dora": True, "rslora": True, "target_modules": ["lm_head", "fc1"]},
    "output layer": {"target_modules": ["lm_head", "q_proj"]},
    "all linear": {"target_modules": "all-linear", "dropout": 0.5},
    "saved modules": {"target_modules": "vision", "modules_to_save": ["image_proj_norm", "image_position_embed"]},
    "saved output layer": {"target_modules": ["qkv"], "modules_to_save": ["lm_head"]},
    "pissa": {"init": "pissa", "target_modules": ["fc1", "fc2"]},
    "pissa, rslora": {"init": "pissa", "rslora": True, "target_modules": ["qkv"]},
    "olora": {"init": "olora", "target_modules": ["q_proj"]},
    "orthogonal": {"init": "orthogonal", "target_modules": ["q_proj"]},
    "patterns": {"target_modules": ["fc1", "fc2"], "rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc2": 3}},
}


def save_changed(folder: Path, **options: Any) -> Path:
    wrapped = randomize_lora(add_lora(tiny(), **options).eval())
    for name, weight in wrapped.named_parameters():
        if ".modules_to_save." in name:
            weight.data += 0.5
    lora.save_adapter(wrapped, folder, base=str(TINY))
    return folder


def merge_without_peft(folder: Path, dtype: torch.dtype = torch.float32):
    return load_inference_model(folder, str(folder), dtype=dtype, device=CPU)


def assert_merges_equal(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    loaded = merge_without_peft(folder, dtype)
    assert loaded is not None
    ours, theirs = loaded[0].state_dict(), load(folder, dtype=dtype, device="cpu")[0].state_dict()
    base = load(TINY, dtype=dtype, device="cpu")[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert any(not torch.equal(ours[name], base[name]) for name in ours)


@pytest.mark.parametrize("case", MERGED)
def test_merged_weights_equal_those_of_peft(case: str, tmp_path: Path) -> None:
    assert_merges_equal(save_changed(tmp_path, **MERGED[case]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_comes_after_the_merge(dtype: torch.dtype, tmp_path: Path) -> None:
    assert_merges_equal(save_changed(tmp_path, use_dora=True), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_adapters_saved_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    path = save_changed(tmp_path, modules_to_save=["image_proj_norm"]) / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    assert_merges_equal(tmp_path)


def test_names_of_microsoft(adapter: Path) -> None:  # noqa: F811
    assert_merges_equal(adapter)


def test_settings_of_old_versions(tmp_path: Path) -> None:
    rename_magnitudes(save_changed(tmp_path, use_dora=True))
    assert_merges_equal(tmp_path)
    keep_old_keys(save_changed(tmp_path))
    assert_merges_equal(tmp_path)


LEFT_TO_PEFT: dict[str, Callable[[Path], None]] = {
    "bias": edit_config(bias="lora_only"),
    "bias of the LoRA": edit_config(lora_bias=True),
    "transposed": edit_config(fan_in_fan_out=True),
    "initialization that changed the base": edit_config(init_lora_weights="pissa"),
    "unknown initialization": edit_config(init_lora_weights="loftq"),
    "unknown key": edit_config(flavour=3),
    "tokens": edit_config(trainable_token_indices=[1]),
    "rank in words": edit_config(r="four"),
    "DoRA without magnitudes": edit_config(use_dora=True),
    "rank of zero": edit_config(r=0),
}


@pytest.mark.parametrize("case", LEFT_TO_PEFT)
def test_rare_settings_are_left_to_peft(case: str, tmp_path: Path) -> None:
    LEFT_TO_PEFT[case](save_changed(tmp_path))
    assert merge_without_peft(tmp_path) is None


@pytest.mark.parametrize("case", FAULTS)
def test_faulty_adapters_are_left_to_peft_or_refused_in_its_words(case: str, adapter: Path) -> None:  # noqa: F811
    damage, message = FAULTS[case]
    damage(adapter)
    with pytest.raises(UserError, match=message) as expected:
        load(adapter, device="cpu")
    assert outcome(adapter) in (None, (expected.value.what, expected.value.hint))


def outcome(folder: Path) -> Any:
    """Return what comes of merging without peft: a model, None, or the words of an error."""
    try:
        return merge_without_peft(folder)
    except UserError as error:
        return error.what, error.hint


def test_an_unknown_key_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_config(flavour=3)(save_changed(tmp_path))
    with caplog.at_level(logging.WARNING, "florence2"):
        load(tmp_path, device="cpu")
    assert "`flavour` (3)" in caplog.text


def test_a_caption_of_an_adapter_imports_neither_transformers_nor_peft(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    folder, output = save_changed(tmp_path / "adapter"), tmp_path / "captions.jsonl"
    modules = modules_after("predict", "--model_path", folder, "--input_path", tmp_path, "--output_path", output)
    assert not modules & {"transformers", "peft", "accelerate", "huggingface_hub"}
    assert '"text"' in output.read_text()
