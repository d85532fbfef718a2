"""Window attention in training: eager where torch's fused kernel is slower, with the same gradients."""

import pytest
import torch
from transformers.models.florence2.modeling_florence2 import Florence2VisionWindowAttention

from florence2.training.prepare_model import LoraOptions, prepare_model_for_training
from tests.tiny import tiny_model

LORA = LoraOptions(rank=2, alpha=2, dropout=0.0, target_modules=("qkv",))


@pytest.mark.parametrize(
    ("dtype", "has_amx", "expected"),
    [(torch.bfloat16, False, "eager"), (torch.bfloat16, True, "sdpa"), (torch.float32, False, "sdpa")],
)
def test_only_bfloat16_without_amx_is_eager(
    dtype: torch.dtype, has_amx: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    model, processor = tiny_model(0)
    prepare_model_for_training(
        model, lora=LORA, freeze="none", dtype=dtype, num_image_tokens=processor.image_processor.image_seq_length
    )
    kinds = {m.config._attn_implementation for m in model.modules() if isinstance(m, Florence2VisionWindowAttention)}
    assert kinds == {expected}


def test_gradients_are_those_of_the_fused_kernel() -> None:
    model, _ = tiny_model(0)
    attention = next(m for m in model.modules() if isinstance(m, Florence2VisionWindowAttention))
    hidden = torch.randn(1, 14, 9, attention.dim, generator=torch.Generator().manual_seed(0))
    gradients = []
    for implementation in ("sdpa", "eager"):
        attention.config._attn_implementation = implementation
        inputs = hidden.clone().requires_grad_()
        attention(inputs).square().sum().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))
