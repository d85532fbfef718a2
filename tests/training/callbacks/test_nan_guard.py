from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState

from florence2.training.callbacks.nan_guard import NonFiniteGradientGuard, skip_on_device, skips_on_device
from tests.training.test_trainer import Bench


def fused(weight: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=True)


def test_fused_optimizer_skips_on_device_without_a_trace() -> None:
    weight, expected = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, other = fused(weight), fused(expected)
    for grad, is_skipped in ((float("nan"), True), (0.5, False), (float("inf"), True), (0.25, False)):
        weight.grad, before = torch.full((3,), grad), weight.detach().clone()
        skip_on_device(optimizer, torch.tensor(is_skipped))
        optimizer.step()
        if is_skipped:
            assert torch.equal(weight, before)
        else:
            expected.grad = torch.full((3,), grad)
            other.step()
    assert torch.equal(weight, expected)
    assert optimizer.state[weight]["step"] == 2


def test_only_fused_optimizers_of_torch_skip_on_device() -> None:
    weight = nn.Parameter(torch.ones(3))
    assert skips_on_device(fused(weight))
    assert not skips_on_device(torch.optim.AdamW([weight], fused=False))
    assert not skips_on_device(torch.optim.RMSprop([weight]))


def test_gradient_norm_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    total_norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda *args: calls.append(1) or total_norm(*args))
    Bench(tmp_path, num_train_epochs=2, callbacks=[NonFiniteGradientGuard()]).trainer.train()
    assert not calls, "the guard takes the norm that the trainer clips by"


def test_finite_gradient_whose_norm_overflows_is_skipped() -> None:
    weight, guard = nn.Parameter(torch.ones(3)), NonFiniteGradientGuard()
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    weight.grad = torch.full((3,), 3e38)
    guard.set_norm(torch.nn.utils.clip_grad_norm_([weight], 1.0))
    guard.on_pre_optimizer_step(None, None, TrainerControl(), optimizer)
    optimizer.step()
    assert guard.skipped == 1
    assert torch.equal(weight, torch.ones(3))


class Arrived:
    """A value that has come from a GPU."""

    def __init__(self, value: bool) -> None:
        self.read = lambda: value


@pytest.mark.parametrize(
    ("skipped", "save", "unread", "consecutive"),
    [
        ([True], False, 1, 0),  # not read yet
        ([True, True], False, 1, 1),
        ([True], True, 0, 1),  # saving needs to know
        ([True, False], True, 0, 0),
    ],
)
def test_norms_of_a_gpu_are_read_late_or_before_saving(
    skipped: list[bool], save: bool, unread: int, consecutive: int
) -> None:
    guard, state = NonFiniteGradientGuard(), TrainerState(max_steps=9)
    values: Any = deque(map(Arrived, skipped))
    guard._unread = values
    control = guard.on_step_end(None, state, TrainerControl(should_save=save))
    assert (len(guard._unread), guard.consecutive) == (unread, consecutive)
    assert control.should_save == (save and not consecutive)
    guard.on_train_end()
    assert guard.skipped == sum(skipped)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_step_is_skipped_without_a_host_sync() -> None:
    weight = nn.Parameter(torch.ones(3, device="cuda"))
    optimizer, guard = fused(weight), NonFiniteGradientGuard()
    gradients = [torch.full_like(weight, value) for value in (float("nan"), float("inf"), 0.5)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for gradient in gradients:
            weight.grad = gradient
            guard.set_norm(torch.nn.utils.clip_grad_norm_([weight], 1.0))
            guard.on_pre_optimizer_step(None, None, TrainerControl(), optimizer)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert guard.skipped == 0
    guard.on_train_end()
    assert (guard.skipped, guard.consecutive) == (2, 0)
    assert optimizer.state[weight]["step"].item() == 1
    assert weight.isfinite().all()
