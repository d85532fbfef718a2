"""The optimizer, from its name, its arguments and our groups; and where our schedules depart from transformers'."""

import contextlib
import inspect
import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from transformers import SchedulerType, Seq2SeqTrainer, Seq2SeqTrainingArguments

from florence2.errors import UserError
from florence2.settings_io import closest_name_hint, parse_pairs, parse_value
from florence2.training.optimizer.groups import GroupRates, parameter_groups
from florence2.training.optimizer.registry import EXTRA, TRANSFORMERS, is_made_by_transformers, optimizer_class


def parse_optimizer_args(given: tuple[str, ...]) -> dict[str, Any]:
    """Read `--optimizer_args key=value`."""
    return {name: parse_value(word) for name, word in parse_pairs("--optimizer_args", given).items()}


def create_optimizer(
    args: Seq2SeqTrainingArguments,
    model: nn.Module,
    optim: str,
    given: Mapping[str, Any],
    lora_plus_ratio: float | None = None,
    vision_learning_rate: float | None = None,
) -> torch.optim.Optimizer | None:
    """Make the optimizer; None means that transformers must make it, because it parts the weights in its own way."""
    rates = GroupRates(
        given.get("lr", args.learning_rate),
        given.get("weight_decay", args.weight_decay),
        lora_plus_ratio,
        vision_learning_rate,
    )
    # Where transformers is asked, it reads the name and its arguments from here.
    args.optim, args.optim_args = optim, ",".join(f"{name}={word}" for name, word in given.items() if _is_plain(word))
    if is_made_by_transformers(optim):
        if rates.has_custom_rates:
            flag = "--lora_plus_ratio" if lora_plus_ratio is not None else "--vision_learning_rate"
            raise UserError(f"`{flag}` does not go with `--optim {optim}`", "leave one of them out")
        return None
    kind, values = _of_transformers(args, optim) if optim in TRANSFORMERS else (optimizer_class(optim), {})
    values |= _accepted(kind, optim, given) | {"lr": rates.learning}
    values.pop("weight_decay", None)  # each group has its own
    parts = parameter_groups(model, rates, muon=kind.__module__.startswith("pytorch_optimizer.optimizer.muon"))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some like to talk
            made = kind(parts, **values)
    except (TypeError, ValueError) as error:
        raise UserError(f"`{optim}` refuses its arguments: {error}", "see `--optimizer_args`") from error
    except ImportError as error:
        raise UserError(f"`--optim {optim}` cannot be used: {error}", "install what it names") from error
    _keep_embeddings_whole(model, kind)
    assert isinstance(made, torch.optim.Optimizer)
    return made


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Climb to each group's learning rate in 30 % of the steps, then fall far below where it began."""
    rates = [group["lr"] for group in optimizer.param_groups]
    momentum = all("betas" in group or "momentum" in group for group in optimizer.param_groups)
    # What averages the weights needs the momentum that it averaged with.
    momentum &= not hasattr(optimizer, "eval")
    return OneCycleLR(optimizer, max_lr=rates, total_steps=steps + 1, cycle_momentum=momentum)


def set_decay_steps(args: Seq2SeqTrainingArguments, steps: int) -> None:
    """Let a schedule that holds its rate fall over the last fifth of the steps, where nobody says otherwise."""
    if args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
        args.lr_scheduler_kwargs = {"num_decay_steps": math.ceil(steps / 5)} | dict(args.lr_scheduler_kwargs or {})


def skip_zero_step(schedule: LRScheduler) -> None:
    """Begin a schedule at its second step: the first of a warm-up has a rate of 0 and teaches nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants the optimizer to go first
        schedule.step()


def optimizer_error(optim: str, error: Exception) -> UserError:
    """Word why transformers makes no such optimizer here."""
    reason = " ".join(str(error).split()).rstrip(".")
    if "optim_target_modules" in reason:
        return UserError(
            f"`--optim {optim}` needs to know which layers", "pass `--trainer_args optim_target_modules=fc1`"
        )
    brought = any(package in reason for package in ("bitsandbytes", "schedulefree"))
    return UserError(f"`--optim {optim}` cannot be used: {reason}", EXTRA if brought else "install it")


def _of_transformers(args: Seq2SeqTrainingArguments, optim: str) -> tuple[Any, dict[str, Any]]:
    try:
        kind, values = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:
        raise optimizer_error(optim, error) from error
    if "warmup_steps" in values:
        values["warmup_steps"] = 0  # the schedule warms up already, and transformers takes our share for a number
    return kind, dict(values)


def _is_plain(word: Any) -> bool:
    return not isinstance(word, list | dict)


def _accepted(kind: Any, optim: str, given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters
    known = [name for name in parameters if name not in ("self", "params")]
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in given:
        if name not in known and not open_ended:
            raise UserError(f"`{optim}` has no argument `{name}`", closest_name_hint(name, known))
    return dict(given)


def _keep_embeddings_whole(model: nn.Module, kind: Any) -> None:
    """Let the 8-bit optimizers hold what they know of embeddings in 32 bits, as their authors advise."""
    if not kind.__module__.startswith("bitsandbytes"):
        return
    from bitsandbytes.optim import GlobalOptimManager

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
