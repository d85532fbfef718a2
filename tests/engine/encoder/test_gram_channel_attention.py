import pytest
import torch
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionChannelAttention

from florence2.engine.encoder.gram_channel_attention import GramChannelAttention, restore_attention, use_gram_attention
from florence2.engine.engine import Engine
from tests.tiny import tiny_model


@pytest.fixture(params=[True, False], ids=["biased", "unbiased"])
def attention(request) -> Florence2VisionChannelAttention:
    torch.manual_seed(0)
    config = Florence2VisionConfig(embed_dim=(12, 16, 16, 16), num_groups=(3, 1, 1, 1), qkv_bias=request.param)
    config._attn_implementation = "sdpa"
    made = Florence2VisionChannelAttention(config, 0).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def test_the_short_way_gives_the_same(attention: Florence2VisionChannelAttention):
    seen = torch.randn(2, 50, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, wanted = GramChannelAttention(attention)._attend(seen), attention(seen)
    # Biases go through float32.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("places", "is_plain"), [(24, True), (25, False)])
def test_few_places_go_the_plain_way(attention: Florence2VisionChannelAttention, places: int, is_plain: bool):
    seen = torch.randn(2, places, 12, dtype=torch.float64)
    with torch.inference_mode():
        wanted = attention(seen)
        use_gram_attention(attention)
        assert torch.equal(attention(seen), wanted) is is_plain
        restore_attention(attention)
        assert torch.equal(attention(seen), wanted)


@pytest.mark.parametrize(("dtype", "is_quick"), [(torch.float32, False), (torch.bfloat16, True)])
def test_only_half_precision_takes_it_and_only_while_the_engine_is_open(dtype: torch.dtype, is_quick: bool):
    model, processor = tiny_model(1)
    model.to(dtype)
    channels = [m for m in model.modules() if isinstance(m, Florence2VisionChannelAttention)]
    with Engine(model, processor):
        assert [isinstance(m.forward, GramChannelAttention) for m in channels] == [is_quick] * len(channels)
    assert not any(isinstance(m.forward, GramChannelAttention) for m in channels)
