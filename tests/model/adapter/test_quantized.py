from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from florence2.errors import UserError
from florence2.model.adapter import lora, quantized
from florence2.model.load import load
from florence2.training.performance.memory import estimate_memory
from florence2.training.performance.memory_estimate import BatchShapes
from florence2.training.summary import count_parameters
from tests.tiny import save_tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


def load_quantized(base: Path) -> Any:
    return load(base, device="cpu", merge=False, quantize=True)[0]


def test_linear_layers_are_double_quantized_nf4_and_others_unchanged(base: Path) -> None:
    unquantized, model = load(base, device="cpu")[0], load_quantized(base)
    before = dict(unquantized.named_modules())
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            assert (state.quant_type, state.nested, module.compute_dtype) == ("nf4", True, torch.bfloat16)
            assert type(before[name]) is nn.Linear
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding | nn.LayerNorm):
            assert torch.equal(module.weight, before[name].weight)
            assert name == "lm_head" or not isinstance(module, nn.Linear)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_quantized_layer_approximates_the_base_in_4_bits(base: Path) -> None:
    layer = load(base, device="cpu")[0].model.language_model.encoder.layers[0].fc1
    quantized_layer = load_quantized(base).model.language_model.encoder.layers[0].fc1
    inputs = torch.randn(5, 32)
    similarity = torch.nn.functional.cosine_similarity(
        layer(inputs).flatten(), quantized_layer(inputs).flatten(), dim=0
    )
    assert similarity > 0.98
    assert not torch.equal(layer(inputs), quantized_layer(inputs))
    assert quantized_layer.weight.numel() * quantized_layer.weight.element_size() * 8 == layer.weight.numel() * 4


def test_parameter_count_ignores_quantization(base: Path) -> None:
    assert count_parameters(load_quantized(base))[1] == count_parameters(load(base, device="cpu")[0])[1]


def test_activation_estimate_ignores_quantization(base: Path) -> None:
    models = [lora.add_lora(load(base, device="cpu", quantize=q)[0], rank=2, alpha=2) for q in (False, True)]
    shapes = BatchShapes(batch_size=1, image_size=(64, 64), num_image_tokens=5, prompt_length=4, target_length=4)
    full, packed = (estimate_memory(model, shapes, torch.float32).activations for model in models)
    assert full == pytest.approx(packed, rel=0.1)
    assert packed > 0
    layer = next(m for m in models[1].modules() if type(m).__name__ == "Linear4bit" and m.in_features == 32)
    assert layer(torch.randn(1, 32)).any()  # its forward is restored


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_initialization_that_changes_the_base_is_refused(base: Path, init: str) -> None:
    with pytest.raises(UserError, match=f"LoRA initialization `{init}` cannot change a base in 4 bits"):
        lora.add_lora(load_quantized(base), rank=2, alpha=2, init=init)


def test_missing_package_and_device_without_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="`--quantize` cannot run on meta: "):
        quantized.check_quantization_available(torch.device("meta"))
    monkeypatch.setattr(quantized, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes") as caught:
        quantized.check_quantization_available(CPU)
    assert caught.value.hint == "run `pip install 'florence2[quantize]'`"
