"""Preparation of a model for training with every kind of LoRA, from the arguments of the command line."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.models.bart.modeling_bart import BartDecoderLayer, BartEncoderLayer

from florence2.errors import UserError
from florence2.model.load import load
from florence2.training.performance.cpu_dropout import ATTENTION
from florence2.training.performance.lora_linear import FusedLoraLinear
from florence2.training.prepare_model import check_can_quantize, parse_dropout_rates
from florence2.training.summary import count_parameters
from tests.tiny import save_tiny, tiny_model
from tests.training.models import trainable_model


def seeded_model(*words: str, **lora: Any) -> nn.Module:
    torch.manual_seed(0)
    return trainable_model(*words, **lora)


def layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def base_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    names = (
        (name.replace(".base_layer", "").removeprefix("base_model.model."), w) for name, w in model.named_parameters()
    )
    return {name: weight.detach() for name, weight in names if ".lora_" not in name}


def test_lora_has_rank_alpha_and_dropout() -> None:
    for _, layer in layers(seeded_model(rank=3, alpha=6, dropout=0.5)):
        assert layer.r["default"] == 3
        assert layer.scaling["default"] == 2
        assert layer.lora_dropout["default"].p == 0.5
        assert isinstance(layer, FusedLoraLinear), "on a CPU"


@pytest.mark.parametrize("rank", [0, 4])
def test_language_component_uses_fast_dropout_on_a_cpu(rank: int) -> None:
    layers = [m for m in seeded_model(rank=rank).modules() if isinstance(m, (BartEncoderLayer, BartDecoderLayer))]
    assert layers
    assert {layer.self_attn.config._attn_implementation for layer in layers} == {ATTENTION}
    assert {layer.dropout for layer in layers} == {0.0}
    assert all(layer.fc2._forward_hooks for layer in layers), "hooks drop in place of the layer"


def test_rank_zero_trains_all_weights() -> None:
    model = seeded_model(rank=0)
    assert not isinstance(model, PeftModel)
    assert len({*count_parameters(model)}) == 1


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    scalings = {layer.scaling["default"] for _, layer in layers(seeded_model("use_rslora=true", rank=4, alpha=4))}
    assert scalings == {4 / math.sqrt(4)}


def test_dora_trains_magnitudes() -> None:
    names = [name for name, weight in seeded_model("use_dora=true").named_parameters() if weight.requires_grad]
    assert sum("lora_magnitude_vector" in name for name in names) == len(names) / 3


def test_gaussian_initialization_is_narrower_than_kaiming() -> None:
    for (name, gauss), (_, plain) in zip(
        layers(seeded_model("init_lora_weights=gaussian", rank=8)), layers(seeded_model(rank=8)), strict=True
    ):
        a, b = gauss.lora_A["default"].weight, gauss.lora_B["default"].weight
        assert not torch.equal(a, plain.lora_A["default"].weight), name
        assert a.std().item() == pytest.approx(1 / 8, rel=0.5)
        assert not b.any()


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_initialization_from_the_base_is_subtracted_from_it(init: str) -> None:
    before, model = (
        base_weights(tiny_model()[0]),
        seeded_model(f"init_lora_weights={init}", target_modules=("fc1", "fc2")),
    )
    left = base_weights(model)
    for name, layer in layers(model):
        name = f"{name.removeprefix('base_model.model.')}.weight"
        delta = layer.get_delta_weight("default")
        assert delta.abs().max() > 1e-3
        torch.testing.assert_close(left[name] + delta, before[name], atol=1e-5, rtol=1e-4)
        if init == "pissa":  # the largest directions are the adapter's
            norms = torch.linalg.matrix_norm(before[name], 2), torch.linalg.matrix_norm(left[name], 2)
            assert norms[1] < 0.999 * norms[0]


def test_rank_and_alpha_patterns_apply() -> None:
    model = seeded_model(
        'rank_pattern={"fc1": 8, "decoder.layers.0.fc2": 1}', 'alpha_pattern={"fc1": 32}', rank=2, alpha=2
    )
    for name, layer in layers(model):
        rank = 8 if name.endswith("fc1") else 1 if name.endswith("decoder.layers.0.fc2") else 2
        assert layer.lora_A["default"].weight.shape[0] == rank
        assert layer.scaling["default"] == (32 / 8 if name.endswith("fc1") else 2 / rank)


@pytest.mark.parametrize(
    ("targets", "freeze", "inside", "outside"),
    [
        (("all-linear",), "none", "multi_modal_projector.image_projection", "lm_head"),
        (("all-linear",), "vision", "language_model.encoder.layers.0.fc1", "vision_tower"),
        (("vision",), "none", "vision_tower", "language_model"),
        (("language",), "none", "language_model", "vision_tower"),
        ((r".*decoder.*\.(q|v)_proj",), "none", "decoder.layers.1.encoder_attn.v_proj", "encoder.layers"),
    ],
)
def test_target_modules(targets: tuple[str, ...], freeze: str, inside: str, outside: str) -> None:
    names = [name for name, _ in layers(seeded_model(target_modules=targets, freeze=freeze))]
    assert any(inside in name for name in names)
    assert not any(outside in name for name in names)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("init_lora_weights=corda",), "`corda` is not a supported LoRA initialization"),
        (("init_lora_weights=loftq",), "`loftq` is not a supported LoRA initialization"),
        (("eva_config={\"rho\": 0.5}", "init_lora_weights=eva"), "LoRA cannot be added: `rho` must be >= 1.0"),
        (("rank_pattern=8",), "LoRA cannot be added"),
    ],
)  # fmt: skip
def test_unsupported_lora_args_raise(words: tuple[str, ...], what: str) -> None:
    with pytest.raises(UserError) as caught:
        seeded_model(*words)
    assert what in caught.value.what


def test_quantize_without_lora_raises() -> None:
    with pytest.raises(UserError, match="`--quantize` does not work with `--rank 0`"):
        check_can_quantize(None, torch.device("cpu"))


def test_model_dropout_args_set_rates(tmp_path: Path) -> None:
    words = ("drop_path_rate=0.3", "attention_dropout=0.25", "dropout=0")
    model, _ = load(save_tiny(tmp_path), device="cpu", dropout=parse_dropout_rates(words))
    assert model.model.vision_tower.config.drop_path_rate == 0.3
    assert any(type(module).__name__ == "Florence2DropPath" for module in model.modules())
    layer = model.model.language_model.encoder.layers[0]
    assert (layer.self_attn.dropout, layer.dropout) == (0.25, 0)


@pytest.mark.parametrize("word", ["drop_path=0.1", "dropout=1", "dropout=true", "dropout=much"])
def test_invalid_model_dropout_args_raise(word: str) -> None:
    with pytest.raises(UserError, match="`--model_dropout_args"):
        parse_dropout_rates((word,))
