import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from florence2.training.optimizer.schedule_free import eval_weights
from tests.training.images import run, save_calm, save_photos
from tests.training.test_trainer import Bench

SCHEDULE_FREE = ("schedule_free_adamw", "prodigyplus.ProdigyPlusScheduleFree")


@pytest.mark.parametrize("optim", SCHEDULE_FREE)
def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, optim: str) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    values: dict[str, Any] = {"optim": optim, "epochs": 2, "save_every_n_steps": 2, "learning_rate": 1e-1}
    uninterrupted = run(tmp_path, "uninterrupted", **values)
    saved = torch.load(uninterrupted / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert not any(group.get("train_mode") for group in saved["param_groups"])
    shutil.copytree(uninterrupted / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = run(tmp_path, "resumed", **values, resume="auto")
    actual, expected, start = (
        load_file(out / "adapter_model.safetensors") for out in (resumed, uninterrupted, uninterrupted / "checkpoint-2")
    )
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert not all(torch.equal(start[name], expected[name]) for name in expected)


def test_training_ends_with_evaluation_weights(tmp_path: Path) -> None:
    bench = Bench(tmp_path, num_train_epochs=4, learning_rate=1e-2, optimizer={"name": "schedule_free_adamw"})
    bench.trainer.train()
    assert {group["train_mode"] for group in bench.trainer.optimizer.param_groups} == {False}
    average = bench.weights()
    with eval_weights(bench.trainer.optimizer):
        assert all(torch.equal(average[name], weight) for name, weight in bench.weights().items())
    assert {group["train_mode"] for group in bench.trainer.optimizer.param_groups} == {False}


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "adamw_torch"])
def test_eval_weights_restores_training_weights(tmp_path: Path, optim: str) -> None:
    bench = Bench(tmp_path, num_train_epochs=4, learning_rate=1e-2, optimizer={"name": optim})
    bench.trainer.train()
    if optim != "adamw_torch":
        bench.trainer.optimizer.train()
    before = bench.weights()
    with eval_weights(bench.trainer.optimizer):
        same = all(torch.equal(before[name], weight) for name, weight in bench.weights().items())
    assert same == (optim == "adamw_torch")
    assert all(torch.equal(before[name], weight) for name, weight in bench.weights().items())
