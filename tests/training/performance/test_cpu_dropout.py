"""Fast dropout in the language component on a CPU has the layers, rates and gradients of torch's."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import BartConfig, BartModel

from florence2.training.performance.cpu_dropout import (
    RATE_STEPS,
    apply_mask,
    attend,
    draw_mask,
    quantized_rate,
    use_cpu_dropout,
)
from tests.tiny import tiny_model

RATES = {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3}


def pair(**rates: float) -> tuple[Any, Any]:
    """Make a small BART with eager attention, and its copy with fast dropout."""
    torch.manual_seed(0)
    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ffn = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 24}
    plain = BartModel(
        BartConfig(vocab_size=50, d_model=16, max_position_embeddings=20, **sizes, **ffn, **rates)
    ).train()
    fast = copy.deepcopy(plain)
    plain.set_attn_implementation("eager")
    use_cpu_dropout(fast)
    return plain, fast


def output_and_gradients(model: Any, is_checkpointed: bool = False) -> list[torch.Tensor]:
    """Return the output of a batch with padding, and the gradients of all weights."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 50, (2, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :5], "use_cache": False}
    torch.manual_seed(2)
    if is_checkpointed:
        output = checkpoint(lambda: model(**batch).last_hidden_state, use_reentrant=False)
    else:
        output = model(**batch).last_hidden_state
    output.square().mul(torch.arange(16.0)).sum().backward()
    return [output, *(weight.grad for weight in model.parameters() if weight.grad is not None)]


def test_dropout_equals_torch_with_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = (model.double() for model in pair(**RATES))
    actual = output_and_gradients(fast)
    rates: list[float] = []

    def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        assert training
        rates.append(p)
        return x * draw_mask(x, quantized_rate(p)) * RATE_STEPS / (RATE_STEPS - quantized_rate(p))

    monkeypatch.setattr(functional, "dropout", dropout)
    expected = output_and_gradients(plain)
    assert sorted(set(rates)) == [0.1, 0.2, 0.3]
    assert len(actual) == len(expected) > 50
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_zero_rates_change_nothing() -> None:
    plain, fast = (model.double() for model in pair(dropout=0.0))
    for a, b in zip(output_and_gradients(fast), output_and_gradients(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_eval_mode_drops_nothing() -> None:
    plain, fast = pair(**RATES)
    torch.testing.assert_close(output_and_gradients(fast.eval())[0], output_and_gradients(plain.eval())[0])


def test_recomputation_draws_the_same_mask() -> None:
    _, fast = pair(**RATES)
    twin = copy.deepcopy(fast)
    for a, b in zip(output_and_gradients(twin, is_checkpointed=True), output_and_gradients(fast), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_bfloat16_is_near_float32() -> None:
    _, fast = pair(**RATES)
    exact = output_and_gradients(copy.deepcopy(fast))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = output_and_gradients(fast)
    for a, b in zip(rounded, exact, strict=True):
        assert (a.float() - b).norm() < 0.1 * exact[1].norm() + 0.1 * b.norm()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["not", "bool", "float"])
def test_attention_masks_equal_torch(causal: bool, masked: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = None if masked == "not" else torch.rand(2, 1, 5, 5) < 0.7
    if mask is not None:
        mask[..., 0] = True
    if masked == "float":
        mask = torch.zeros(2, 1, 5, 5).masked_fill(~mask, -1e9)
    module = torch.nn.Module()
    module.is_causal = causal
    rare = 1 / RATE_STEPS  # drops none of 200 elements with this seed, and hardly scales the others
    torch.manual_seed(0)
    actual, _ = attend(module, query, key, value, mask, dropout=rare)
    expected = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal and mask is None)
    torch.testing.assert_close(actual, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
    assert actual.is_contiguous()


def test_saved_config_does_not_change(tmp_path: Path) -> None:
    model, _ = tiny_model()
    model.save_pretrained(tmp_path / "before")
    use_cpu_dropout(model)
    model.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "config.json").read_text() for name in ("before", "after"))
    assert before == after


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_apply_mask_equals_torch_where(dtype: torch.dtype) -> None:
    x = torch.randn(7, 5).to(dtype)
    x[0, 0], x[1, 1], x[2, 2] = float("inf"), float("nan"), -0.0
    mask = draw_mask(x, RATE_STEPS // 2)
    assert mask.dtype == (torch.int16 if dtype in (torch.bfloat16, torch.float16) else torch.bool)
    actual = apply_mask(mask, x)
    assert torch.equal(actual.nan_to_num(7), torch.where(mask.bool(), x, 0).nan_to_num(7))
    assert torch.equal(apply_mask(mask, x.t().contiguous().t()).nan_to_num(7), actual.nan_to_num(7))  # other strides
    assert torch.equal(apply_mask(mask, x.double()).nan_to_num(7), actual.double().nan_to_num(7))  # other element size
