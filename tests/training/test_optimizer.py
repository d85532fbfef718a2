from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Seq2SeqTrainingArguments

from florence2.config import LoraSettings, ModelSettings
from florence2.errors import UserError
from florence2.training.learner import equip
from florence2.training.optimizer import arguments_of, build, check_name, groups, one_cycle
from tests.tiny import tiny_model
from tests.training.test_trainer import Bench


def arguments(folder: Path, **values: Any) -> Seq2SeqTrainingArguments:
    return Seq2SeqTrainingArguments(str(folder), use_cpu=True, report_to=[], **values)


def test_norms_and_biases_do_not_decay() -> None:
    model, _ = tiny_model()
    names = {id(weight): name for name, weight in model.named_parameters()}
    decayed = {g["weight_decay"]: {names[id(w)] for w in g["params"]} for g in groups(model, 1e-3, 0.1, None)}
    assert all(name.endswith("bias") or "norm" in name for name in decayed[0.0])
    assert not [name for name in decayed[0.1] if name.endswith("bias") or "norm" in name]
    assert len(decayed[0.0]) + len(decayed[0.1]) == len(names)


def test_lora_plus_lets_b_learn_faster() -> None:
    model, _ = tiny_model()
    learner = equip(model, ModelSettings(), LoraSettings())
    names = {id(weight): name for name, weight in learner.named_parameters()}
    rates = {names[id(w)]: g["lr"] for g in groups(learner, 1e-3, 0.0, 16) for w in g["params"]}
    assert {rate for name, rate in rates.items() if ".lora_B." in name} == {1.6e-2}
    assert {rate for name, rate in rates.items() if ".lora_A." in name} == {1e-3}


@pytest.mark.parametrize(
    ("optim", "given", "rate"),
    [
        ("adamw_torch", ("betas=[0.8,0.9]",), 3e-3),
        ("adafactor", (), 3e-2),
        ("torch.optim.SGD", ("momentum=0.9", "nesterov=true"), 1e-1),
        ("torch.optim.NAdam", (), 3e-3),
        ("rmsprop", (), 1e-3),
    ],
)
def test_each_optimizer_learns(tmp_path: Path, optim: str, given: tuple[str, ...], rate: float) -> None:
    method = {"optim": optim, "optimizer_args": arguments_of(given)}
    bench = Bench(tmp_path, num_train_epochs=6, logging_steps=1, learning_rate=rate, method=method)
    bench.trainer.train()
    losses = [row["loss"] for row in bench.trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    for name, value in arguments_of(given).items():
        kept = bench.trainer.optimizer.param_groups[0][name]
        assert (list(kept) if isinstance(kept, tuple) else kept) == value


def test_arguments_win_over_flags(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    made = build(arguments(tmp_path, learning_rate=1e-3), model, "adamw_torch", {"lr": 0.5, "weight_decay": 0.2}, None)
    assert {(group["lr"], group["weight_decay"]) for group in made.param_groups} == {(0.5, 0.2), (0.5, 0.0)}


def test_one_cycle_climbs_and_falls(tmp_path: Path) -> None:
    method = {"optim": "adamw_torch", "one_cycle": True}
    bench = Bench(tmp_path, num_train_epochs=10, logging_steps=1, learning_rate=1e-2, method=method)
    bench.trainer.train()
    rates = [row["learning_rate"] for row in bench.trainer.state.log_history if "learning_rate" in row]
    top = rates.index(max(rates))
    assert 1 <= top <= 4
    assert max(rates) == pytest.approx(1e-2, rel=0.05)
    assert rates[-1] < 1e-3


def test_one_cycle_keeps_each_groups_rate() -> None:
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.Adagrad([{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 16.0}])
    one_cycle(optimizer, 10)
    assert [group["max_lr"] for group in optimizer.param_groups] == [1.0, 16.0]


@pytest.mark.parametrize("name", ["adam", "torch.optim", "nowhere.Optimizer", "collections.OrderedDict"])
def test_refused_names(name: str) -> None:
    with pytest.raises(UserError):
        check_name(name)
