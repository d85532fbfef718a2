from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Seq2SeqTrainingArguments

from florence2.errors import UserError
from florence2.training.optimizer.create import create_optimizer, one_cycle
from florence2.training.optimizer.optimizer_config import OptimizerConfig, parse_optimizer_args
from tests.training.models import trainable_model
from tests.training.test_trainer import Bench


def arguments(folder: Path, **values: Any) -> Seq2SeqTrainingArguments:
    return Seq2SeqTrainingArguments(str(folder), use_cpu=True, report_to=[], **values)


def created(
    folder: Path, optim: str, args: Any = None, model: Any = None, rates: Any = None, **values: Any
) -> torch.optim.Optimizer:
    config = OptimizerConfig(optim, 1e-3, "constant", args or {}, **(rates or {}))
    optimizer = create_optimizer(arguments(folder, **values), model or nn.Linear(3, 3), config)
    assert optimizer is not None
    return optimizer


def losses(bench: Bench) -> list[float]:
    bench.trainer.train()
    return [row["loss"] for row in bench.trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("optim", "words", "rate", "steps", "class_path"),
    [
        ("adamw_torch", ("betas=[0.8,0.9]",), 3e-3, 6, "torch.optim.adamw.AdamW"),
        ("adafactor", (), 3e-2, 6, "transformers.optimization.Adafactor"),
        ("rmsprop", (), 1e-3, 6, "torch.optim.rmsprop.RMSprop"),
        ("adamw_bnb_8bit", (), 3e-3, 6, "bitsandbytes.optim.adamw.AdamW"),
        ("schedule_free_adamw", (), 1e-2, 8, "schedulefree.adamw_schedulefree.AdamWScheduleFree"),
        ("Lion", ("betas=[0.8,0.9]",), 1e-3, 6, "pytorch_optimizer.optimizer.lion.Lion"),
        ("prodigy", (), 1.0, 20, "pytorch_optimizer.optimizer.prodigy.Prodigy"),
        ("muon", (), 1e-2, 6, "pytorch_optimizer.optimizer.muon.muon.Muon"),
        ("prodigyplus.ProdigyPlusScheduleFree", ("d0=0.001",), 1.0, 10, ""),
        ("torch.optim.SGD", ("momentum=0.9", "nesterov=true"), 1e-1, 6, "torch.optim.sgd.SGD"),
    ],
)
def test_each_optimizer_lowers_the_loss(
    tmp_path: Path,
    optim: str,
    words: tuple[str, ...],
    rate: float,
    steps: int,
    class_path: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = {"name": optim, "args": parse_optimizer_args(words)}
    bench = Bench(tmp_path, num_train_epochs=steps, logging_steps=1, learning_rate=rate, optimizer=config)
    logged = losses(bench)
    assert logged[-1] < 0.8 * logged[0]
    cls = type(bench.trainer.optimizer.optimizer)
    assert class_path in ("", f"{cls.__module__}.{cls.__name__}")
    for name, value in parse_optimizer_args(words).items():
        used = bench.trainer.optimizer.param_groups[0][name]
        assert (list(used) if isinstance(used, tuple) else used) == value
    assert capsys.readouterr().out == ""  # stdout is data


def test_8_bit_optimizer_has_32_bit_state_of_embeddings(tmp_path: Path) -> None:
    bench = Bench(tmp_path, learning_rate=1e-3, optimizer={"name": "adamw_bnb_8bit"})
    bench.trainer.train()
    state = bench.trainer.optimizer.optimizer.state
    kinds = {name: state[weight]["state1"].dtype for name, weight in bench.model.named_parameters()}
    large = {name for name, weight in bench.model.named_parameters() if weight.numel() >= 4096}
    tables = {name for name in large if "embed" in name or "shared" in name}
    assert tables
    assert large - tables
    assert {kinds[name] for name in tables} == {torch.float32}
    assert {kinds[name] for name in large - tables} == {torch.uint8}


def test_optimizer_args_override_flags(tmp_path: Path) -> None:
    optimizer = created(tmp_path, "adamw_torch", {"lr": 0.5, "weight_decay": 0.2})
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.5, 0.2), (0.5, 0.0)}


def test_only_the_schedule_warms_up(tmp_path: Path) -> None:
    # transformers passes a fraction of the steps on as a count, and the first step would be 33 times too large.
    optimizer = created(tmp_path, "schedule_free_adamw", warmup_steps=0.03)
    assert {group["warmup_steps"] for group in optimizer.param_groups} == {0}


@pytest.mark.parametrize(
    ("optim", "args", "rates", "what"),
    [
        ("adamw_torch", {"beta": 1}, {}, "`adamw_torch` has no argument `beta`"),
        ("lion", {"betas": 3}, {}, "`lion` rejects its arguments"),
        ("ranger21", {}, {}, "`ranger21` rejects its arguments"),
        ("galore_adamw", {}, {"lora_plus_ratio": 16}, "`--lora_plus_ratio` does not work with"),
        ("adalomo", {}, {"vision_learning_rate": 1e-5}, "`--vision_learning_rate` does not work with"),
        ("grokadamw", {}, {}, "`--optim grokadamw` cannot be used: Please install grokadamw"),
    ],
)
def test_unsupported_options_raise(tmp_path: Path, optim: str, args: Any, rates: Any, what: str) -> None:
    with pytest.raises(UserError, match=what):
        created(tmp_path, optim, args, trainable_model(), rates)


@pytest.mark.parametrize("optim", ["galore_adamw", "apollo_adamw", "lomo"])
def test_missing_package_of_a_transformers_optimizer_raises(tmp_path: Path, optim: str) -> None:
    with pytest.raises(UserError, match=f"`--optim {optim}` "):
        Bench(tmp_path, optimizer={"name": optim}).trainer.train()


def test_one_cycle_rises_and_falls(tmp_path: Path) -> None:
    config = {"name": "adamw_torch", "lr_scheduler_type": "onecycle"}
    bench = Bench(tmp_path, num_train_epochs=10, logging_steps=1, learning_rate=1e-2, optimizer=config)
    logged = losses(bench)
    assert logged[-1] < 0.8 * logged[0]
    rates = [row["learning_rate"] for row in bench.trainer.state.log_history if "learning_rate" in row]
    top = rates.index(max(rates))
    assert 1 <= top <= 4
    assert max(rates) == pytest.approx(1e-2, rel=0.05)
    assert rates[-1] < 1e-3


def test_one_cycle_peaks_at_the_rate_of_each_group() -> None:
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.Adagrad([{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 16.0}])
    one_cycle(optimizer, 10)
    assert [group["max_lr"] for group in optimizer.param_groups] == [1.0, 16.0]


def test_one_cycle_does_not_change_the_momentum_of_schedule_free(tmp_path: Path) -> None:
    schedule_free = created(tmp_path, "schedule_free_adamw")
    plain = created(tmp_path, "adamw_torch")
    for optimizer in (schedule_free, plain):
        one_cycle(optimizer, 10)
    assert schedule_free.param_groups[0]["betas"][0] == 0.9
    assert plain.param_groups[0]["betas"][0] == 0.95
