"""The quick way of LoRA's branch on a CPU: peft's numbers and gradients, and dropout that drops what it says."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn
from torch.utils.checkpoint import checkpoint

from florence2.training.performance import lora_linear as branches
from florence2.training.performance.cpu_dropout import RATE_STEPS, draw_mask
from florence2.training.performance.lora_linear import FusedLoraLinear, use_fused_lora

RATE = 0.25


def pair(dropout: float = 0.0, **lora: Any) -> tuple[Any, Any]:
    """Make peft's layers and a copy that takes the quick way; both halves of the branch hold something."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules=["0", "2"], **lora)
    plain = get_peft_model(body, config)
    for name, weight in plain.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    quick = copy.deepcopy(plain)
    use_fused_lora(quick)
    assert sum(type(module) is FusedLoraLinear for module in quick.modules()) == 2
    return plain, quick


def learn(model: Any, x: torch.Tensor, again: bool = False) -> list[torch.Tensor]:
    """Give the answer, the gradient of what came in, and those of all weights that learn."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    answer = checkpoint(model, x, use_reentrant=False) if again else model(x)
    answer.float().square().sum().backward()
    return [answer, x.grad, *(weight.grad for weight in model.parameters() if weight.requires_grad)]


def same(found: list[torch.Tensor], wanted: list[torch.Tensor], **by: float) -> None:
    assert len(found) == len(wanted) == 6
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, **by)


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 7, 24), (2, 3, 5, 24)])
def test_without_dropout_it_is_what_peft_gives(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, quick = pair()
    wanted = learn(plain, x := torch.randn(shape))
    monkeypatch.setattr(Linear, "forward", None)  # peft's own is not asked
    same(learn(quick, x), wanted)


def test_a_base_that_learns_too_learns_the_same() -> None:
    plain, quick = pair()
    for model in (plain, quick):
        model.requires_grad_(True)
    for a, b in zip(*(learn(model, torch.ones(5, 24)) for model in (quick, plain)), strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_drops_before_the_branch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, quick = pair(dropout=RATE)
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(branches, "draw_mask", lambda *given: drawn.append(draw_mask(*given)) or drawn[-1])
    found = learn(quick, x := torch.randn(6, 24))
    shares = iter(drawn)
    given = x.clone().requires_grad_()
    hidden = given
    for layer in quick.base_model.model:
        if not isinstance(layer, FusedLoraLinear):
            hidden = layer(hidden)
            continue
        seen = hidden * next(shares) / (1 - RATE)
        hidden = layer.base_layer(hidden) + 2 * seen @ layer.lora_A.default.weight.T @ layer.lora_B.default.weight.T
    weights = [weight for weight in quick.parameters() if weight.requires_grad]
    wanted = torch.autograd.grad(hidden.square().sum(), [given, *weights])
    same(found, [hidden, *wanted])


def test_recomputed_it_drops_the_same_places() -> None:
    _, quick = pair(dropout=RATE)
    twin = copy.deepcopy(quick)
    same(learn(twin, x := torch.randn(6, 24), again=True), learn(quick, x), rtol=0, atol=0)


def test_answering_drops_nothing() -> None:
    plain, quick = (model.eval() for model in pair(dropout=RATE))
    with torch.no_grad():
        torch.testing.assert_close(quick(torch.ones(3, 24)), plain(torch.ones(3, 24)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [1 / RATE_STEPS, 0.1, 0.25, 0.5, 0.999])
def test_each_place_is_kept_by_the_same_chance(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = round(rate * RATE_STEPS)
    kept = draw_mask(torch.empty(250_000, 4, dtype=dtype), dropped).double()  # a row from each draw of 64 bits
    share, spread = 1 - dropped / RATE_STEPS, (dropped / RATE_STEPS * (1 - dropped / RATE_STEPS) / 250_000) ** 0.5
    assert kept.mean(0).sub(share).abs().max() < 5 * spread
    if rate == RATE:
        together = torch.corrcoef(kept.T) - torch.eye(4)
        assert together.abs().max() < 0.01, "one place says nothing of another"
    assert draw_mask(torch.empty(3, 7), dropped).shape == (3, 7)


def test_in_half_precision_it_is_as_near_as_peft() -> None:
    plain, quick = pair()
    exact, x = learn(copy.deepcopy(plain), given := torch.randn(9, 24)), given
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = learn(plain, x), learn(quick, x)
    assert ours[0].dtype == torch.bfloat16
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - c).norm() < 1.5 * (b.float() - c).norm() + 1e-3 * c.norm()


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_two_matrices_is_left_to_peft(lora: dict[str, bool]) -> None:
    plain, quick = pair(**lora)
    x = torch.randn(5, 24)
    torch.testing.assert_close(quick(x), plain(x))
    assert quick(x).grad_fn.name() != "BranchBackward"


class Wrapped(nn.Linear):
    """As FSDP wraps what it parts: the weight is whole in its own forward alone."""


@pytest.mark.parametrize("parted_by", ["deepspeed", "fsdp"])
def test_parted_weights_are_left_to_peft(parted_by: str) -> None:
    plain, quick = pair()
    for layer in quick.modules():
        if isinstance(layer, FusedLoraLinear) and parted_by == "deepspeed":
            layer.lora_A.default.weight.ds_id = 7
        elif isinstance(layer, FusedLoraLinear):
            layer.lora_B.default.__class__ = Wrapped
    x = torch.randn(5, 24)
    torch.testing.assert_close(quick(x), plain(x))
    assert quick(x).grad_fn.name() != "BranchBackward"


def test_adapters_switched_off_merged_or_doubled_are_left_to_peft() -> None:
    for change in ("disable_adapter_layers", "merge_adapter"):
        plain, quick = pair()
        for model in (plain, quick):
            getattr(model.base_model, change)()
        torch.testing.assert_close(quick(torch.ones(2, 24)), plain(torch.ones(2, 24)))
    plain, quick = pair()
    for model in (plain, quick):
        model.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    quick.load_state_dict(plain.state_dict())
    torch.testing.assert_close(quick(torch.ones(2, 24)), plain(torch.ones(2, 24)))


def test_a_copy_merges_into_plain_layers() -> None:
    _, quick = pair()
    merged = copy.deepcopy(quick).merge_and_unload()
    assert {type(module) for module in merged} == {nn.Linear, nn.GELU}
    torch.testing.assert_close(merged(torch.ones(2, 24)), quick.eval()(torch.ones(2, 24)))
