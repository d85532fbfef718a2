"""The fused LoRA branch on a CPU has the outputs and gradients of peft, and dropout at the given rate."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn
from torch.utils.checkpoint import checkpoint

from florence2.training.performance import lora_linear
from florence2.training.performance.cpu_dropout import RATE_STEPS, draw_mask
from florence2.training.performance.lora_linear import FusedLoraLinear, use_fused_lora

RATE = 0.25


def pair(dropout: float = 0.0, **lora: Any) -> tuple[Any, Any]:
    """Make layers of peft and a fused copy; no matrix of the branches is zero."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules=["0", "2"], **lora)
    plain = get_peft_model(body, config)
    for name, weight in plain.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    fused = copy.deepcopy(plain)
    use_fused_lora(fused)
    assert sum(type(module) is FusedLoraLinear for module in fused.modules()) == 2
    return plain, fused


def output_and_gradients(model: Any, x: torch.Tensor, is_checkpointed: bool = False) -> list[torch.Tensor]:
    """Return the output, the gradient of the input and those of the trainable weights."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    output = checkpoint(model, x, use_reentrant=False) if is_checkpointed else model(x)
    output.float().square().sum().backward()
    return [output, x.grad, *(weight.grad for weight in model.parameters() if weight.requires_grad)]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor], **tolerance: float) -> None:
    assert len(actual) == len(expected) == 6
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 7, 24), (2, 3, 5, 24)])
def test_branch_without_dropout_equals_peft(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fused = pair()
    expected = output_and_gradients(plain, x := torch.randn(shape))
    monkeypatch.setattr(Linear, "forward", None)  # the forward of peft is not called
    assert_same(output_and_gradients(fused, x), expected)


def test_trainable_base_has_the_gradients_of_peft() -> None:
    plain, fused = pair()
    for model in (plain, fused):
        model.requires_grad_(True)
    for a, b in zip(*(output_and_gradients(model, torch.ones(5, 24)) for model in (fused, plain)), strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_applies_to_the_branch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fused = pair(dropout=RATE)
    masks: list[torch.Tensor] = []
    monkeypatch.setattr(lora_linear, "draw_mask", lambda *args: masks.append(draw_mask(*args)) or masks[-1])
    actual = output_and_gradients(fused, x := torch.randn(6, 24))
    unused_masks = iter(masks)
    leaf = x.clone().requires_grad_()
    hidden = leaf
    for layer in fused.base_model.model:
        if not isinstance(layer, FusedLoraLinear):
            hidden = layer(hidden)
            continue
        dropped = hidden * next(unused_masks) / (1 - RATE)
        hidden = layer.base_layer(hidden) + 2 * dropped @ layer.lora_A.default.weight.T @ layer.lora_B.default.weight.T
    weights = [weight for weight in fused.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(hidden.square().sum(), [leaf, *weights])
    assert_same(actual, [hidden, *gradients])


def test_recomputation_draws_the_same_mask() -> None:
    _, fused = pair(dropout=RATE)
    twin = copy.deepcopy(fused)
    assert_same(
        output_and_gradients(twin, x := torch.randn(6, 24), is_checkpointed=True),
        output_and_gradients(fused, x),
        rtol=0,
        atol=0,
    )


def test_eval_mode_drops_nothing() -> None:
    plain, fused = (model.eval() for model in pair(dropout=RATE))
    with torch.no_grad():
        torch.testing.assert_close(fused(torch.ones(3, 24)), plain(torch.ones(3, 24)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [1 / RATE_STEPS, 0.1, 0.25, 0.5, 0.999])
def test_mask_has_the_rate_at_each_position(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    drop_steps = round(rate * RATE_STEPS)
    p = drop_steps / RATE_STEPS
    mask = draw_mask(torch.empty(250_000, 4, dtype=dtype), drop_steps).double()  # 64 random bits make a row
    assert mask.mean(0).sub(1 - p).abs().max() < 5 * (p * (1 - p) / 250_000) ** 0.5
    if rate == RATE:
        correlation = torch.corrcoef(mask.T) - torch.eye(4)
        assert correlation.abs().max() < 0.01
    assert draw_mask(torch.empty(3, 7), drop_steps).shape == (3, 7)


def test_bfloat16_error_is_that_of_peft() -> None:
    plain, fused = pair()
    x = torch.randn(9, 24)
    exact = output_and_gradients(copy.deepcopy(plain), x)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = output_and_gradients(plain, x), output_and_gradients(fused, x)
    assert ours[0].dtype == torch.bfloat16
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - c).norm() < 1.5 * (b.float() - c).norm() + 1e-3 * c.norm()


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_bias": True}])
def test_lora_variants_run_peft(lora: dict[str, bool]) -> None:
    plain, fused = pair(**lora)
    x = torch.randn(5, 24)
    torch.testing.assert_close(fused(x), plain(x))
    assert fused(x).grad_fn.name() != "LoraBranchBackward"


class FsdpLinear(nn.Linear):
    """Linear layer like those of FSDP, which gather their weight in their own forward only."""


@pytest.mark.parametrize("sharded_by", ["deepspeed", "fsdp"])
def test_sharded_weights_run_peft(sharded_by: str) -> None:
    plain, fused = pair()
    for layer in fused.modules():
        if isinstance(layer, FusedLoraLinear) and sharded_by == "deepspeed":
            layer.lora_A.default.weight.ds_id = 7
        elif isinstance(layer, FusedLoraLinear):
            layer.lora_B.default.__class__ = FsdpLinear
    x = torch.randn(5, 24)
    torch.testing.assert_close(fused(x), plain(x))
    assert fused(x).grad_fn.name() != "LoraBranchBackward"


def test_disabled_merged_or_several_adapters_run_peft() -> None:
    for change in ("disable_adapter_layers", "merge_adapter"):
        plain, fused = pair()
        for model in (plain, fused):
            getattr(model.base_model, change)()
        torch.testing.assert_close(fused(torch.ones(2, 24)), plain(torch.ones(2, 24)))
    plain, fused = pair()
    for model in (plain, fused):
        model.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    fused.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fused(torch.ones(2, 24)), plain(torch.ones(2, 24)))


def test_copy_merges_into_plain_layers() -> None:
    _, fused = pair()
    merged = copy.deepcopy(fused).merge_and_unload()
    assert {type(module) for module in merged} == {nn.Linear, nn.GELU}
    torch.testing.assert_close(merged(torch.ones(2, 24)), fused.eval()(torch.ones(2, 24)))
