import pytest
import torch
from torch import Tensor, nn

import florence2
from florence2.data.sample import Sample
from florence2.demo.scenes import make_scene
from florence2.devices import FP8, inference_dtype
from florence2.engine.encoder.gram_channel_attention import GramChannelAttention
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.quantization.fp8_linear import HIGHEST, Fp8Linear, quantize_rows_fp8
from florence2.engine.quantization.quantize_model import quantize_model
from florence2.errors import OptionError

# A CPU computes fp8, too, as slowly as float32: the numbers of these tests are those of a GPU.


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_linear(*, bias: bool) -> nn.Linear:
    linear = nn.Linear(96, 48, bias=bias).requires_grad_(requires_grad=False)
    for number, parameter in enumerate(linear.parameters()):
        parameter.data = random_tensor(*parameter.shape, seed=number) * 0.2
    return linear.bfloat16()


def test_a_row_is_within_half_a_step_of_its_numbers():
    rows = random_tensor(6, 64) * torch.logspace(-6, 3, 6).unsqueeze(1)
    rows[3] = 0
    levels, scale = quantize_rows_fp8(rows.bfloat16())
    assert levels.float().abs().amax(1).tolist() == [HIGHEST, HIGHEST, HIGHEST, 0, HIGHEST, HIGHEST]
    step = (rows.abs() / 8).maximum(scale * 2**-9)  # 3 bits of mantissa
    assert ((levels.float() * scale - rows.bfloat16().float()).abs() <= step / 2).all()


@pytest.mark.parametrize("is_scaled_inside", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_in_fp8_is_near_the_layer_and_no_row_depends_on_another(bias: bool, is_scaled_inside: bool):
    linear = random_linear(bias=bias)
    layer = Fp8Linear(linear)
    layer._is_scaled_inside = is_scaled_inside
    hidden = random_tensor(2, 9, 96, seed=5).bfloat16()
    result, expected = layer(hidden), linear(hidden)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert (result - expected).norm() / expected.norm() < 0.05
    crowd = torch.cat([hidden, 100 * hidden], 1)
    assert torch.equal(layer(crowd)[:, :9], result)


def test_both_orders_of_scaling_give_the_same_numbers():
    layer = Fp8Linear(random_linear(bias=True))
    hidden = random_tensor(50, 96, seed=7).bfloat16()
    inside = layer(hidden)
    layer._is_scaled_inside = False
    torch.testing.assert_close(layer(hidden), inside, rtol=2e-2, atol=2e-2)


def test_a_number_that_is_not_finite_makes_its_row_nan():
    hidden = random_tensor(3, 96).bfloat16()
    hidden[1, 5] = float("inf")
    result = Fp8Linear(random_linear(bias=True))(hidden)
    assert result[1].isnan().all()
    assert result[[0, 2]].isfinite().all()


def test_captions_of_the_bundled_model_are_those_of_bfloat16():
    samples = [Sample(str(seed), make_scene(seed).render(), "caption") for seed in range(4)]
    texts = []
    for precision in (None, FP8):
        model, processor = florence2.load("demo", dtype=torch.bfloat16, device="cpu")
        if precision:
            quantize_model(model, precision)
            layers = [type(module) for module in model.model.vision_tower.modules() if hasattr(module, "in_features")]
            assert set(layers) == {Fp8Linear}
        with Engine(model, processor, EngineConfig(GenerationConfig(num_beams=3))) as engine:
            attentions = [m for m in model.modules() if isinstance(m.forward, GramChannelAttention)]
            assert attentions
            texts.append({prediction.file_name: prediction.text for prediction in engine.run(samples)})
    assert texts[0] == texts[1]


def test_sizes_that_no_kernel_takes_keep_their_layer():
    model, _ = florence2.load("demo", dtype=torch.bfloat16, device="cpu")
    block = model.get_encoder().layers[0]
    block.fc1 = nn.Linear(block.fc1.in_features, 40)
    quantize_model(model, FP8)
    assert type(block.fc1) is nn.Linear
    assert type(block.fc2) is Fp8Linear


def test_fp8_is_refused_where_no_kernel_multiplies_it(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OptionError, match="runs on an NVIDIA GPU, and the device is `cpu`"):
        inference_dtype(FP8, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(OptionError, match=r"needs compute capability 8.9 .*, not 8.6"):
        inference_dtype(FP8, torch.device("cuda:0"))
    with pytest.raises(OptionError, match="a precision of predictions"):
        florence2.load("demo", dtype=FP8)
