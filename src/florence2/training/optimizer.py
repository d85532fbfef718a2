"""Which weights move how fast: parameter groups, the optimizer by name or by class, and the one-cycle schedule.

Knows weights by name and kind only; the settings come as plain values.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.training_args import OptimizerNames

from florence2.errors import UserError
from florence2.settings import near, pairs, value

Group = dict[str, Any]


def groups(model: nn.Module, learning_rate: float, weight_decay: float, lora_plus_ratio: float | None) -> list[Group]:
    """Part the trained weights: norms and biases do not decay, LoRA's B matrices may learn faster (LoRA+)."""
    plain = _undecayed(model)
    parts: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            fast = lora_plus_ratio is not None and ".lora_B." in name
            parts.setdefault((fast, name in plain), []).append(weight)
    return [
        {
            "params": weights,
            "lr": learning_rate * (lora_plus_ratio if fast and lora_plus_ratio else 1),
            "weight_decay": 0.0 if undecayed else weight_decay,
        }
        for (fast, undecayed), weights in sorted(parts.items(), key=lambda part: part[0])
    ]


def _undecayed(model: nn.Module) -> set[str]:
    found = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            if isinstance(module, nn.LayerNorm) or name.endswith("bias"):
                found.add(name)
    return found


def is_class(optim: str) -> bool:
    """Tell a class, `package.Class`, from one of transformers' names."""
    return "." in optim


def check_name(optim: str) -> None:
    """Refuse an optimizer that is neither a name of transformers nor a class that can be imported."""
    if is_class(optim):
        _class_at(optim)
    elif optim not in (known := [name.value for name in OptimizerNames]):
        raise UserError(f"`--optim {optim}` is not known", near(optim, [*known, "package.Class"]))


def arguments_of(given: tuple[str, ...]) -> dict[str, Any]:
    """Read `--optimizer_args key=value`."""
    return {name: value(word) for name, word in pairs("--optimizer_args", given).items()}


def build(
    args: Seq2SeqTrainingArguments,
    model: nn.Module,
    optim: str,
    given: Mapping[str, Any],
    lora_plus_ratio: float | None,
) -> torch.optim.Optimizer | None:
    """Make the optimizer; None means that transformers must make it, because it parts the weights in its own way."""
    rate, decay = given.get("lr", args.learning_rate), given.get("weight_decay", args.weight_decay)
    if is_class(optim):
        kind, values = _class_at(optim), dict[str, Any]()
    else:
        kind, values = _named(args, model, optim)
        if not inspect.isclass(kind) or {"params", "model", "optimizer_dict"} & values.keys():
            if lora_plus_ratio is not None:
                raise UserError(f"`--lora_plus_ratio` does not go with `--optim {optim}`", "leave one of them out")
            return None
    values |= _accepted(kind, optim, given) | {"lr": rate}
    values.pop("weight_decay", None)  # each group has its own
    parts = groups(model, rate, decay, lora_plus_ratio)
    try:
        made = kind(parts, **values)
    except (TypeError, ValueError) as error:
        raise UserError(f"`{optim}` refuses its arguments: {error}", "see `--optimizer_args`") from error
    assert isinstance(made, torch.optim.Optimizer)
    return made


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Climb to each group's learning rate in 30 % of the steps, then fall far below where it began."""
    rates = [group["lr"] for group in optimizer.param_groups]
    momentum = all("betas" in group or "momentum" in group for group in optimizer.param_groups)
    return OneCycleLR(optimizer, max_lr=rates, total_steps=steps + 1, cycle_momentum=momentum)


def _named(args: Seq2SeqTrainingArguments, model: nn.Module, optim: str) -> tuple[Any, dict[str, Any]]:
    try:
        kind, values = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(args, model)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"`--optim {optim}` cannot be used: {reason}", "install what it needs") from error
    return kind, dict(values)


def _class_at(path: str) -> Any:
    package, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        top = package.split(".")[0].replace("_", "-")
        raise UserError(f"`--optim {path}` cannot be imported: {error}", f"run `pip install {top}`") from error
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)):
        raise UserError(f"`{path}` is not an optimizer of torch's kind", "name a class such as `torch.optim.SGD`")
    return kind


def _accepted(kind: Any, optim: str, given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters
    known = [name for name in parameters if name not in ("self", "params")]
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in given:
        if name not in known and not open_ended:
            raise UserError(f"`{optim}` has no argument `{name}`", near(name, known))
    return dict(given)
