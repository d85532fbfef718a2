import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.engine.quantization.int8_linear import (
    GELU_MINIMUM,
    Int8Linear,
    QuantizedInput,
    quantize_in_place,
    quantize_input,
    quantize_rows,
)
from florence2.engine.quantization.int8_tower import Int8FeedForward, Int8WindowAttention
from florence2.model.inference.architecture import VisionArchitecture
from florence2.model.inference.vision_tower import FeedForward, WindowAttention

needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="this CPU has no AVX-512 VNNI")
HALF_STEP = 0.5


def random_tensor(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def random_layers(module: nn.Module) -> nn.Module:
    for number, parameter in enumerate(module.parameters()):
        parameter.data = random_tensor(*parameter.shape, seed=number, scale=0.2)
    return module.eval().requires_grad_(requires_grad=False)


def relative_error(result: Tensor, expected: Tensor) -> float:
    return float((result.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "values",
    [
        random_tensor(64, 32),
        random_tensor(64, 32).abs() + 3,  # zero lies outside of the values
        -random_tensor(64, 32).abs(),
        F.gelu(random_tensor(64, 32, scale=5)),
        random_tensor(64, 32, scale=1e-6),
        torch.zeros(4, 4),
        torch.full((4, 4), 7.3),
    ],
    ids=["normal", "positive", "negative", "gelu", "tiny", "zero", "constant"],
)
def test_an_input_is_within_half_a_step_of_its_bytes(values: Tensor, dtype: torch.dtype):
    values = values.to(dtype)
    before = values.clone()
    quantized = quantize_input(values)
    assert_within_half_a_step(quantized, values)
    assert torch.equal(values, before)
    assert (
        quantized.scale <= 1.01 * (max(float(values.max()), 0) - min(float(values.min()), 0)) / 254 or not values.any()
    )


@pytest.mark.parametrize("scale", [5, 0.03], ids=["above the bound", "below the bound"])
def test_a_known_minimum_spares_the_search_for_it(scale: float):
    values = F.gelu(random_tensor(64, 32, scale=scale))
    quantized = quantize_in_place(values.clone(), GELU_MINIMUM)
    assert_within_half_a_step(quantized, values)
    assert quantized.scale <= 1.05 * float(values.max() - values.min()) / 254


def test_no_gelu_is_below_its_bound():
    assert float(F.gelu(torch.linspace(-20, 0, 100_001)).min()) > GELU_MINIMUM


def assert_within_half_a_step(quantized: QuantizedInput, values: Tensor) -> None:
    levels, scale, zero_point = quantized
    assert levels.dtype == torch.uint8
    assert 0 <= zero_point <= 255
    restored = (levels.float() - zero_point) * scale
    assert (restored - values.float()).abs().max() <= 1.01 * HALF_STEP * scale


def test_a_weight_is_within_half_a_step_of_its_bytes():
    weight = random_tensor(8, 64) * torch.logspace(-6, 3, 8).unsqueeze(1)
    weight[3] = 0
    levels, scale = quantize_rows(weight)
    assert levels.abs().amax(1).tolist() == [127, 127, 127, 0, 127, 127, 127, 127]
    assert ((levels * scale.unsqueeze(1) - weight).abs() <= 0.501 * scale.unsqueeze(1)).all()


@needs_vnni
@pytest.mark.parametrize("by_row", [False, True], ids=["one scale", "a scale for each row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_in_8_bits_is_near_the_layer(dtype: torch.dtype, has_bias: bool, by_row: bool):
    linear = random_layers(nn.Linear(96, 40, bias=has_bias))
    hidden = random_tensor(2, 9, 96, seed=5).to(dtype)
    result = Int8Linear(linear, by_row=by_row)(hidden)
    assert (result.shape, result.dtype) == ((2, 9, 40), dtype)
    assert relative_error(result, linear(hidden.float())) < 0.02


@needs_vnni
def test_with_scales_by_row_no_row_depends_on_another():
    layer = Int8Linear(random_layers(nn.Linear(64, 32)), by_row=True)
    hidden = random_tensor(1, 5, 64)
    crowd = torch.cat([hidden, random_tensor(1, 7, 64, seed=1, scale=100)], 1)
    assert torch.equal(layer(crowd)[:, :5], layer(hidden))


@needs_vnni
def test_the_weight_stays_where_other_code_multiplies_by_it():
    linear = random_layers(nn.Linear(8, 8))
    assert Int8Linear(linear, with_weight=True).weight is linear.weight
    assert not list(Int8Linear(linear).parameters())


@needs_vnni
@pytest.mark.parametrize("activation", [None, nn.GELU("tanh"), nn.ReLU()])
def test_the_feed_forward_network_has_its_own_activation(activation: nn.Module | None):
    plain = random_layers(FeedForward(32, 64))
    expected_activation = activation or F.gelu
    if activation is not None:
        plain.activation_fn = activation
    hidden = random_tensor(1, 50, 32, seed=9)
    expected = plain.fc2(expected_activation(plain.fc1(hidden)))
    assert relative_error(Int8FeedForward(plain)(hidden), expected) < 0.03


@needs_vnni
@pytest.mark.parametrize("size", [(12, 12), (9, 14), (3, 2)], ids=["windows", "padded", "smaller than a window"])
def test_window_attention_in_8_bits_is_near_window_attention(size: tuple[int, int]):
    sizes = VisionArchitecture(embed_dim=(32,), num_heads=(4,), window_size=6)
    attention = random_layers(WindowAttention(sizes, 0))
    hidden = random_tensor(1, *size, 32, seed=4)
    result = Int8WindowAttention(attention)(hidden)
    assert relative_error(result, attention(hidden)) < 0.03


@needs_vnni
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_makes_all_products_nan(number: float):
    hidden = random_tensor(1, 6, 6, 32)
    hidden[0, 2, 3, 4] = number
    attention = WindowAttention(VisionArchitecture(embed_dim=(32,), num_heads=(4,), window_size=6), 0)
    for layer in (Int8FeedForward(random_layers(FeedForward(32, 64))), Int8WindowAttention(random_layers(attention))):
        assert layer(hidden.bfloat16()).isnan().all()
    assert Int8Linear(random_layers(nn.Linear(32, 8)))(hidden).isnan().all()
