import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from florence2.training.optimizer.schedule_free import eval_weights
from tests.training.images import run, save_calm, save_photos
from tests.training.test_trainer import Bench

AVERAGING = ("schedule_free_adamw", "prodigyplus.ProdigyPlusScheduleFree")


@pytest.mark.parametrize("optim", AVERAGING)
def test_resumed_from_what_is_kept_is_never_stopped(tmp_path: Path, optim: str) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    values: dict[str, Any] = {"optim": optim, "epochs": 2, "save_every_n_steps": 2, "learning_rate": 1e-1}
    whole = run(tmp_path, "whole", **values)
    kept = torch.load(whole / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert not any(group.get("train_mode") for group in kept["param_groups"])
    shutil.copytree(whole / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    again = run(tmp_path, "again", **values, resume="auto")
    mine, theirs, start = (
        load_file(out / "adapter_model.safetensors") for out in (again, whole, whole / "checkpoint-2")
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert not all(torch.equal(start[name], theirs[name]) for name in theirs)


def test_training_ends_with_the_average(tmp_path: Path) -> None:
    bench = Bench(tmp_path, num_train_epochs=4, learning_rate=1e-2, method={"optim": "schedule_free_adamw"})
    bench.trainer.train()
    assert {group["train_mode"] for group in bench.trainer.optimizer.param_groups} == {False}
    average = bench.weights()
    with eval_weights(bench.trainer.optimizer):
        assert all(torch.equal(average[name], weight) for name, weight in bench.weights().items())
    assert {group["train_mode"] for group in bench.trainer.optimizer.param_groups} == {False}


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "adamw_torch"])
def test_looking_at_the_average_changes_nothing(tmp_path: Path, optim: str) -> None:
    bench = Bench(tmp_path, num_train_epochs=4, learning_rate=1e-2, method={"optim": optim})
    bench.trainer.train()
    if optim != "adamw_torch":
        bench.trainer.optimizer.train()
    before = bench.weights()
    with eval_weights(bench.trainer.optimizer):
        same = all(torch.equal(before[name], weight) for name, weight in bench.weights().items())
    assert same == (optim == "adamw_torch")
    assert all(torch.equal(before[name], weight) for name, weight in bench.weights().items())
