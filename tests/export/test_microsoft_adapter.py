"""Adapters with Microsoft's module names: they come back equal, and do the same on a base in Microsoft's layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from florence2 import api
from florence2.errors import UserError
from florence2.model.adapter.adapter_files import read_adapter
from florence2.model.load import load
from florence2.model.storage import checkpoint_files as checkpoint
from tests.export.adapters import trained_adapter
from tests.model.original import ROWS, TINY, assert_equals_original, expected
from tests.tiny import save_tiny, tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "rslora, ranks by pattern": {"rslora": True, "rank_pattern": {"fc1": 2}, "alpha_pattern": {"encoder.*fc1": 16}},
    "dora of convolutions": {"target_modules": ["conv", "proj", "fc1"], "use_dora": True},
    "modules to save": {"modules_to_save": ["image_proj_norm", "image_position_embed"]},
    "vision tower saved": {"target_modules": ["q_proj"], "modules_to_save": ["vision_tower"]},
    "output layer": {"target_modules": ["q_proj", "lm_head"]},
    "output layer saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "biases": {"bias": "lora_only"},
}


@pytest.fixture(scope="module")
def microsoft_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return export(save_tiny(folder / "base"), folder / "microsoft", to="microsoft")


def export(source: Path, folder: Path, to: str = "adapter-microsoft", **options: str) -> Path:
    api.export(model_path=str(source), output_path=str(folder), to=to, **options)  # type: ignore[arg-type]
    return folder


@torch.inference_mode()
def logits_of(model: Any) -> torch.Tensor:
    config = model.config
    ids = torch.tensor([[config.image_token_id] * 5 + [0, 40, 50, 60, 2]])
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    answer = torch.tensor([[2, 0, 44, 55, 66]])
    logits: torch.Tensor = model(input_ids=ids, pixel_values=pixels, decoder_input_ids=answer).logits
    return logits[..., : config.image_token_id]


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_comes_back_and_does_the_same(tmp_path: Path, microsoft_base: Path, kind: str) -> None:
    adapter = trained_adapter(tmp_path, **KINDS[kind])
    exported = export(adapter, tmp_path / "exported")
    names = load_file(exported / "adapter_model.safetensors").keys()
    assert not [name for name in names if name.startswith("base_model.model.model.")]
    original, again = read_adapter(adapter), read_adapter(exported)
    for name, tensor in original.state.items():
        found = again.state[name]
        assert torch.equal(found, tensor[: len(found)]), name
        assert found.shape == tensor.shape or "lm_head" in name
    assert original.state.keys() == again.state.keys()
    for key in ("target_modules", "modules_to_save"):
        assert set(again.config[key] or ()) == set(original.config[key] or ()), key
    for key in ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "rank_pattern", "alpha_pattern"):
        assert again.config[key] == original.config[key], key
    expected_logits = logits_of(load(adapter, device="cpu")[0])
    for options in ({}, {"base": microsoft_base}):
        torch.testing.assert_close(
            logits_of(load(exported, device="cpu", **options)[0]), expected_logits, atol=1e-4, rtol=0
        )
    assert (expected_logits - logits_of(tiny_model()[0])).abs().max() > 0.1


def test_adapter_of_the_original_code_comes_back_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for path in (TINY / "adapter").iterdir():
        (tmp_path / "adapter" / path.name).write_bytes(path.read_bytes())
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace("microsoft/Florence-2-base-ft", str(TINY)))
    exported = export(tmp_path / "adapter", tmp_path / "out")
    found, stored = (load_file(each / "adapter_model.safetensors") for each in (exported, TINY / "adapter"))
    assert found.keys() == stored.keys()
    assert all(found[name].dtype == tensor.dtype for name, tensor in stored.items())
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())
    model, _ = load(exported, device="cpu")
    assert_equals_original(model, expected("expected_adapter"))
    assert model.config.image_token_id == ROWS


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target_modules": ["image_projection", "q_proj"]}, "multi_modal_projector.image_projection"),
        ({"modules_to_save": ["multi_modal_projector"]}, "multi_modal_projector"),
        ({"modules_to_save": ["window_attn"]}, "vision_tower.blocks.0.0.spatial_block.window_attn"),
    ],
    ids=["projection", "projector", "attention"],
)
def test_module_without_a_counterpart_is_refused_by_name(tmp_path: Path, options: Any, named: str) -> None:
    adapter = trained_adapter(tmp_path, **({"target_modules": ["q_proj"]} | options))
    with pytest.raises(UserError) as caught:
        export(adapter, tmp_path / "out")
    assert caught.value.what == f"the module `model.{named}` of the adapter has no counterpart in Microsoft's code"
    assert not (tmp_path / "out").exists()


def test_full_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exports an adapter, and `demo` is none"):
        api.export(model_path="demo", output_path=str(tmp_path / "out"), to="adapter-microsoft")


def test_base_is_named_by_an_absolute_path(tmp_path: Path) -> None:
    adapter = trained_adapter(tmp_path)
    config = adapter / checkpoint.ADAPTER_CONFIG
    config.write_text(config.read_text().replace(str(tmp_path / "base"), "../base"))
    exported = export(adapter, tmp_path / "elsewhere" / "out")
    base = checkpoint.read_json(exported / checkpoint.ADAPTER_CONFIG)["base_model_name_or_path"]
    assert base == str((tmp_path / "base").resolve())
