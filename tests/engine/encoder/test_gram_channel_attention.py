import pytest
import torch
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionChannelAttention

from florence2.engine.encoder.attention_patch import restore_attention, use_patch
from florence2.engine.encoder.gram_channel_attention import GramChannelAttention
from florence2.engine.engine import Engine
from tests.tiny import tiny_model


@pytest.fixture(params=[True, False], ids=["biased", "unbiased"])
def attention(request) -> Florence2VisionChannelAttention:
    torch.manual_seed(0)
    config = Florence2VisionConfig(embed_dim=(12, 16, 16, 16), num_groups=(3, 1, 1, 1), qkv_bias=request.param)
    config._attn_implementation = "sdpa"
    module = Florence2VisionChannelAttention(config, 0).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def test_gram_attention_equals_plain_attention(attention: Florence2VisionChannelAttention):
    hidden = torch.randn(2, 50, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        result, expected = GramChannelAttention(attention)._attend(hidden), attention(hidden)
    # The biases are added in float32.
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("positions", "is_plain"), [(24, True), (25, False)])
def test_few_positions_use_plain_attention(attention: Florence2VisionChannelAttention, positions: int, is_plain: bool):
    hidden = torch.randn(2, positions, 12, dtype=torch.float64)
    with torch.inference_mode():
        expected = attention(hidden)
        use_patch(attention, GramChannelAttention)
        assert torch.equal(attention(hidden), expected) is is_plain
        restore_attention(attention, GramChannelAttention)
        assert torch.equal(attention(hidden), expected)


@pytest.mark.parametrize(("dtype", "is_patched"), [(torch.float32, False), (torch.bfloat16, True)])
def test_only_half_precision_is_patched_and_only_until_close(dtype: torch.dtype, is_patched: bool):
    model, processor = tiny_model(1)
    model.to(dtype)
    channels = [m for m in model.modules() if isinstance(m, Florence2VisionChannelAttention)]
    with Engine(model, processor):
        with Engine(model, processor) as second:
            assert [isinstance(m.forward, GramChannelAttention) for m in channels] == [is_patched] * len(channels)
        second.close()
        assert [isinstance(m.forward, GramChannelAttention) for m in channels] == [is_patched] * len(channels)
    assert not any(isinstance(m.forward, GramChannelAttention) for m in channels)
