from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Seq2SeqTrainingArguments

from florence2.config import LoraSettings, ModelSettings
from florence2.errors import UserError
from florence2.training.optimizer.create import create_optimizer, one_cycle, parse_optimizer_args
from florence2.training.prepare_model import prepare_model_for_training
from tests.tiny import tiny_model
from tests.training.test_trainer import Bench


def arguments(folder: Path, **values: Any) -> Seq2SeqTrainingArguments:
    return Seq2SeqTrainingArguments(str(folder), use_cpu=True, report_to=[], **values)


def losses(bench: Bench) -> list[float]:
    bench.trainer.train()
    return [row["loss"] for row in bench.trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("optim", "given", "rate", "steps", "made"),
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
def test_each_optimizer_learns(
    tmp_path: Path,
    optim: str,
    given: tuple[str, ...],
    rate: float,
    steps: int,
    made: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    method = {"optim": optim, "optimizer_args": parse_optimizer_args(given)}
    bench = Bench(tmp_path, num_train_epochs=steps, logging_steps=1, learning_rate=rate, method=method)
    seen = losses(bench)
    assert seen[-1] < 0.8 * seen[0]
    kind = type(bench.trainer.optimizer.optimizer)
    assert made in ("", f"{kind.__module__}.{kind.__name__}")
    for name, value in parse_optimizer_args(given).items():
        kept = bench.trainer.optimizer.param_groups[0][name]
        assert (list(kept) if isinstance(kept, tuple) else kept) == value
    assert capsys.readouterr().out == ""  # stdout is data


def test_eight_bits_are_kept_of_matrices_and_thirty_two_of_embeddings(tmp_path: Path) -> None:
    bench = Bench(tmp_path, learning_rate=1e-3, method={"optim": "adamw_bnb_8bit"})
    bench.trainer.train()
    state = bench.trainer.optimizer.optimizer.state
    kinds = {name: state[weight]["state1"].dtype for name, weight in bench.learner.named_parameters()}
    large = {name for name, weight in bench.learner.named_parameters() if weight.numel() >= 4096}
    tables = {name for name in large if "embed" in name or "shared" in name}
    assert tables
    assert large - tables
    assert {kinds[name] for name in tables} == {torch.float32}
    assert {kinds[name] for name in large - tables} == {torch.uint8}


def test_arguments_win_over_flags(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    made = create_optimizer(
        arguments(tmp_path, learning_rate=1e-3), model, "adamw_torch", {"lr": 0.5, "weight_decay": 0.2}
    )
    assert {(group["lr"], group["weight_decay"]) for group in made.param_groups} == {(0.5, 0.2), (0.5, 0.0)}


def test_the_warm_up_is_the_schedules_alone(tmp_path: Path) -> None:
    # transformers hands the share of steps on as their number, and the first step would be 33 times too long.
    made = create_optimizer(arguments(tmp_path, warmup_steps=0.03), nn.Linear(3, 3), "schedule_free_adamw", {})
    assert {group["warmup_steps"] for group in made.param_groups} == {0}


@pytest.mark.parametrize(
    ("optim", "given", "rates", "what"),
    [
        ("adamw_torch", {"beta": 1}, {}, "`adamw_torch` has no argument `beta`"),
        ("lion", {"betas": 3}, {}, "`lion` refuses its arguments"),
        ("ranger21", {}, {}, "`ranger21` refuses its arguments"),
        ("galore_adamw", {}, {"lora_plus_ratio": 16}, "`--lora_plus_ratio` does not go with"),
        ("adalomo", {}, {"vision_learning_rate": 1e-5}, "`--vision_learning_rate` does not go with"),
        ("grokadamw", {}, {}, "`--optim grokadamw` cannot be used: Please install grokadamw"),
    ],
)
def test_what_does_not_go(tmp_path: Path, optim: str, given: Any, rates: Any, what: str) -> None:
    model, _ = tiny_model()
    learner = prepare_model_for_training(model, ModelSettings(), LoraSettings())
    with pytest.raises(UserError, match=what):
        create_optimizer(arguments(tmp_path), learner, optim, given, **rates)


@pytest.mark.parametrize("optim", ["galore_adamw", "apollo_adamw", "lomo"])
def test_what_transformers_makes_and_lacks_is_named(tmp_path: Path, optim: str) -> None:
    with pytest.raises(UserError, match=f"`--optim {optim}` "):
        Bench(tmp_path, method={"optim": optim}).trainer.train()


def test_one_cycle_climbs_and_falls(tmp_path: Path) -> None:
    method = {"optim": "adamw_torch", "one_cycle": True}
    bench = Bench(tmp_path, num_train_epochs=10, logging_steps=1, learning_rate=1e-2, method=method)
    seen = losses(bench)
    assert seen[-1] < 0.8 * seen[0]
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


def test_one_cycle_leaves_the_momentum_of_what_averages_alone(tmp_path: Path) -> None:
    averaging = create_optimizer(arguments(tmp_path), nn.Linear(3, 3), "schedule_free_adamw", {})
    plain = create_optimizer(arguments(tmp_path), nn.Linear(3, 3), "adamw_torch", {})
    for optimizer in (averaging, plain):
        one_cycle(optimizer, 10)
    assert averaging.param_groups[0]["betas"][0] == 0.9
    assert plain.param_groups[0]["betas"][0] == 0.95
