"""Creation of the optimizer and of its learning rate schedule."""

import contextlib
import inspect
import math
import sys
import warnings
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from transformers import SchedulerType, Seq2SeqTrainer, Seq2SeqTrainingArguments

from florence2.errors import MissingPackageError, OptionError, UserError
from florence2.settings_io import closest_name_hint
from florence2.training.optimizer.groups import GroupRates, parameter_groups
from florence2.training.optimizer.optimizer_config import OptimizerConfig
from florence2.training.optimizer.registry import EXTRA, TRANSFORMERS, is_made_by_transformers, optimizer_class


def create_optimizer(
    args: Seq2SeqTrainingArguments, model: nn.Module, config: OptimizerConfig
) -> torch.optim.Optimizer | None:
    """Create the optimizer, or return None if transformers must create it because it groups the weights itself."""
    optim = config.name
    rates = GroupRates(
        config.args.get("lr", config.learning_rate),
        config.args.get("weight_decay", args.weight_decay),
        config.lora_plus_ratio,
        config.vision_learning_rate,
    )
    # transformers reads the name and the arguments from here.
    args.optim = optim
    args.optim_args = ",".join(f"{name}={value}" for name, value in config.args.items() if _is_scalar(value))
    if is_made_by_transformers(optim):
        if rates.has_custom_rates:
            flag = "--lora_plus_ratio" if config.lora_plus_ratio is not None else "--vision_learning_rate"
            raise OptionError(f"`{flag}` does not work with `--optim {optim}`", "remove one of them")
        return None
    cls, kwargs = _transformers_optimizer(args, optim) if optim in TRANSFORMERS else (optimizer_class(optim), {})
    kwargs |= _checked_args(cls, config) | {"lr": rates.learning_rate}
    kwargs.pop("weight_decay", None)  # each group has its own
    groups = parameter_groups(model, rates, muon=cls.__module__.startswith("pytorch_optimizer.optimizer.muon"))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some optimizers print
            optimizer = cls(groups, **kwargs)
    except (TypeError, ValueError) as error:
        raise OptionError(f"`{optim}` rejects its arguments: {error}", "see `--optimizer_args`") from error
    except ImportError as error:
        raise MissingPackageError(
            f"`--optim {optim}` cannot be used: {error}", "install the package that it names"
        ) from error
    _use_32_bit_embeddings(model, cls)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Create torch's one-cycle schedule, which peaks at each group's learning rate after 30% of the steps."""
    rates = [group["lr"] for group in optimizer.param_groups]
    momentum = all("betas" in group or "momentum" in group for group in optimizer.param_groups)
    # Schedule-Free averages weights with a momentum that must not change.
    momentum &= not hasattr(optimizer, "eval")
    return OneCycleLR(optimizer, max_lr=rates, total_steps=steps + 1, cycle_momentum=momentum)


def set_decay_steps(args: Seq2SeqTrainingArguments, steps: int) -> None:
    """Let `warmup_stable_decay` decay over the last fifth of the steps, unless `lr_scheduler_kwargs` sets the steps."""
    if args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
        args.lr_scheduler_kwargs = {"num_decay_steps": math.ceil(steps / 5)} | dict(args.lr_scheduler_kwargs or {})


def skip_zero_step(schedule: LRScheduler) -> None:
    """Start a schedule at its second step: the learning rate of the first step of a warmup is 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns if the optimizer has not stepped
        schedule.step()


def optimizer_error(optim: str, error: Exception) -> UserError:
    """Translate an error of transformers that concerns the optimizer."""
    reason = " ".join(str(error).split()).rstrip(".")
    if "optim_target_modules" in reason:
        return OptionError(
            f"`--optim {optim}` needs the names of layers", "pass `--trainer_args optim_target_modules=fc1`"
        )
    is_in_extra = any(package in reason for package in ("bitsandbytes", "schedulefree"))
    return MissingPackageError(f"`--optim {optim}` cannot be used: {reason}", EXTRA if is_in_extra else "install it")


def _transformers_optimizer(args: Seq2SeqTrainingArguments, optim: str) -> tuple[Any, dict[str, Any]]:
    try:
        cls, kwargs = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:
        raise optimizer_error(optim, error) from error
    if "warmup_steps" in kwargs:
        kwargs["warmup_steps"] = 0  # the schedule warms up, and transformers mistakes our fraction for a count
    return cls, dict(kwargs)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _checked_args(cls: Any, config: OptimizerConfig) -> dict[str, Any]:
    """Return the optimizer's arguments; raise OptionError for one that its constructor does not have."""
    parameters = inspect.signature(cls.__init__).parameters
    known = [name for name in parameters if name not in ("self", "params")]
    has_kwargs = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in config.args:
        if name not in known and not has_kwargs:
            raise OptionError(f"`{config.name}` has no argument `{name}`", closest_name_hint(name, known))
    return dict(config.args)


def _use_32_bit_embeddings(model: nn.Module, cls: Any) -> None:
    """Let an 8-bit optimizer of bitsandbytes hold its state of embeddings in 32 bits, as bitsandbytes advises."""
    if not cls.__module__.startswith("bitsandbytes"):
        return
    from bitsandbytes.optim import GlobalOptimManager

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
