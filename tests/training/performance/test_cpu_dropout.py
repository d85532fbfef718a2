"""Dropout in the language half on a CPU: where torch drops, as often, and with the gradients that follow."""

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
    """Make a small BART whose attention drops by `functional.dropout`, and its copy that takes the quick way."""
    torch.manual_seed(0)
    sizes = {f"{half}_{name}": 2 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ffn = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 24}
    plain = BartModel(
        BartConfig(vocab_size=50, d_model=16, max_position_embeddings=20, **sizes, **ffn, **rates)
    ).train()
    quick = copy.deepcopy(plain)
    plain.set_attn_implementation("eager")
    use_cpu_dropout(quick)
    return plain, quick


def learn(model: Any, again: bool = False) -> list[torch.Tensor]:
    """Give what a batch with padding says, and the gradients of all weights."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 50, (2, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :5], "use_cache": False}
    torch.manual_seed(2)
    if again:
        answer = checkpoint(lambda: model(**given).last_hidden_state, use_reentrant=False)
    else:
        answer = model(**given).last_hidden_state
    answer.square().mul(torch.arange(16.0)).sum().backward()
    return [answer, *(weight.grad for weight in model.parameters() if weight.grad is not None)]


def test_the_same_places_are_dropped_as_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, quick = (model.double() for model in pair(**RATES))
    found = learn(quick)
    rates: list[float] = []

    def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        assert training
        rates.append(p)
        return x * draw_mask(x, quantized_rate(p)) * RATE_STEPS / (RATE_STEPS - quantized_rate(p))

    monkeypatch.setattr(functional, "dropout", dropout)
    wanted = learn(plain)
    assert sorted(set(rates)) == [0.1, 0.2, 0.3]
    assert len(found) == len(wanted) > 50
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_without_rates_it_is_what_it_was() -> None:
    plain, quick = (model.double() for model in pair(dropout=0.0))
    for a, b in zip(learn(quick), learn(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_answering_drops_nothing() -> None:
    plain, quick = pair(**RATES)
    torch.testing.assert_close(learn(quick.eval())[0], learn(plain.eval())[0])


def test_recomputed_it_drops_the_same_places() -> None:
    _, quick = pair(**RATES)
    twin = copy.deepcopy(quick)
    for a, b in zip(learn(twin, again=True), learn(quick), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_half_precision_is_near_the_exact_numbers() -> None:
    _, quick = pair(**RATES)
    exact = learn(copy.deepcopy(quick))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = learn(quick)
    for a, b in zip(rounded, exact, strict=True):
        assert (a.float() - b).norm() < 0.1 * exact[1].norm() + 0.1 * b.norm()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["not", "bool", "float"])
def test_masks_are_those_of_torch(causal: bool, masked: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = None if masked == "not" else torch.rand(2, 1, 5, 5) < 0.7
    if mask is not None:
        mask[..., 0] = True
    if masked == "float":
        mask = torch.zeros(2, 1, 5, 5).masked_fill(~mask, -1e9)
    module = torch.nn.Module()
    module.is_causal = causal
    rare = 1 / RATE_STEPS  # of 200 places none is dropped with these numbers, and what is kept hardly grows
    torch.manual_seed(0)
    found, _ = attend(module, query, key, value, mask, dropout=rare)
    wanted = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal and mask is None)
    torch.testing.assert_close(found, wanted.transpose(1, 2), rtol=1e-4, atol=1e-5)
    assert found.is_contiguous()


def test_nothing_of_it_is_kept_with_the_model(tmp_path: Path) -> None:
    model, _ = tiny_model()
    model.save_pretrained(tmp_path / "before")
    use_cpu_dropout(model)
    model.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "config.json").read_text() for name in ("before", "after"))
    assert before == after


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_is_kept_is_as_it_was_and_the_rest_is_nothing(dtype: torch.dtype) -> None:
    x = torch.randn(7, 5).to(dtype)
    x[0, 0], x[1, 1], x[2, 2] = float("inf"), float("nan"), -0.0
    kept = draw_mask(x, RATE_STEPS // 2)
    assert kept.dtype == (torch.int16 if dtype in (torch.bfloat16, torch.float16) else torch.bool)
    found = apply_mask(kept, x)
    assert torch.equal(found.nan_to_num(7), torch.where(kept.bool(), x, 0).nan_to_num(7))
    assert torch.equal(apply_mask(kept, x.t().contiguous().t()).nan_to_num(7), found.nan_to_num(7))  # however it lies
    assert torch.equal(apply_mask(kept, x.double()).nan_to_num(7), found.double().nan_to_num(7))  # and however wide
