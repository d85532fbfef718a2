import pytest
import torch
from torch.nn import functional as F
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionWindowAttention

from florence2.engine.encoder.encoder import attention_patches
from florence2.engine.encoder.gram_channel_attention import GramChannelAttention
from florence2.engine.encoder.window_attention import MAX_EXPONENT, WindowProducts, attend
from florence2.engine.engine import Engine
from florence2.model.inference.architecture import VisionArchitecture
from florence2.model.inference.vision_tower import WindowAttention
from tests.tiny import tiny_model

CPU = torch.device("cpu")


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["transformers", "prediction"])
def attention(request) -> torch.nn.Module:
    sizes = {"embed_dim": (32,), "num_heads": (4,), "window_size": 6}
    if request.param == "transformers":
        config = Florence2VisionConfig(**sizes)
        config._attn_implementation = "sdpa"
        module: torch.nn.Module = Florence2VisionWindowAttention(config, 0)
    else:
        module = WindowAttention(VisionArchitecture(**sizes), 0)
    for number, parameter in enumerate(module.parameters()):
        parameter.data = random_tensor(*parameter.shape, seed=number) * 0.2
    return module.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("size", [(12, 12), (9, 14), (3, 2)], ids=["windows", "padded", "smaller than a window"])
def test_products_equal_the_attention_of_both_classes(attention: torch.nn.Module, size: tuple[int, int]):
    hidden = random_tensor(2, *size, 32, seed=4)
    torch.testing.assert_close(WindowProducts(attention)(hidden), attention(hidden), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 100], ids=["small", "beyond the limit"])
def test_attention_equals_the_fused_kernel(scale: float):
    query, key, value = random_tensor(3, 6, 20, 16).unbind(0)
    query, key = query * scale, key * scale
    assert bool((query @ key.mT / 4).abs().max() > MAX_EXPONENT) is (scale > 1)
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend(query, key, value, 0.25), expected, rtol=1e-4, atol=1e-5)


def test_a_cpu_with_amx_a_gpu_and_float32_have_fused_window_attention(monkeypatch: pytest.MonkeyPatch):
    both = [GramChannelAttention, WindowProducts]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert attention_patches(torch.bfloat16, CPU, is_int8=False) == both
    assert attention_patches(torch.bfloat16, CPU, is_int8=True) == both[:1]  # its window attention is its own
    assert attention_patches(torch.bfloat16, torch.device("cuda"), is_int8=False) == both[:1]
    assert not attention_patches(torch.float32, CPU, is_int8=False)
    assert not attention_patches(torch.float16, CPU, is_int8=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert attention_patches(torch.bfloat16, CPU, is_int8=False) == both[:1]


def test_window_attention_is_patched_until_the_last_engine_closes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    model, processor = tiny_model(1)
    model.to(torch.bfloat16)
    windows = [m for m in model.modules() if isinstance(m, Florence2VisionWindowAttention)]
    with Engine(model, processor):
        with Engine(model, processor):
            assert all(isinstance(m.forward, WindowProducts) for m in windows)
        assert all(isinstance(m.forward, WindowProducts) for m in windows)
    assert not any(isinstance(m.forward, WindowProducts) for m in windows)
