"""An optimizer by its name: one of transformers', one of the package `pytorch-optimizer`, or a class anywhere."""

import importlib
import inspect
from importlib.util import find_spec
from typing import Any

import torch
from transformers.training_args import OptimizerNames

from florence2.errors import UserError
from florence2.settings_io import closest_name_hint

EXTRA = "run `pip install 'florence2[optimizers]'`"
TRANSFORMERS = tuple(name.value for name in OptimizerNames)
# transformers parts the weights for these itself, or hands them the model.
MADE_BY_TRANSFORMERS = ("galore", "apollo", "lomo", "adalomo")
# Modules that the extra brings, where their names do not say which package they are in.
_PACKAGED = ("prodigyplus", "pytorch_optimizer", "schedulefree", "bitsandbytes")
_CLOSURE = "it calls the loss again within a step"
_GRAPH = "it needs second derivatives"
# What takes more than groups of weights and their gradients.
_UNFIT = {
    **dict.fromkeys(("alig", "bsam", "lbfgs"), _CLOSURE),
    **dict.fromkeys(("adahessian", "sophiah"), _GRAPH),
    "adammini": "it takes the model itself",
}


def check_name(optim: str) -> None:
    """Refuse a name that means no optimizer, before anything is read."""
    if optim not in TRANSFORMERS:
        optimizer_class(optim)


def is_made_by_transformers(optim: str) -> bool:
    """Tell whether transformers must make it, because it parts the weights in its own way."""
    return optim in TRANSFORMERS and optim.startswith(MADE_BY_TRANSFORMERS)


def optimizer_class(optim: str) -> Any:
    """Find the class that a name means, `package.Class` or one of `pytorch-optimizer`."""
    kind = _class_at(optim) if "." in optim else _packaged(optim)
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)):
        raise UserError(f"`{optim}` is not an optimizer of torch's kind", "name a class such as `torch.optim.SGD`")
    closure = inspect.signature(kind.step).parameters.get("closure")
    must = closure is not None and closure.default is inspect.Parameter.empty
    if reason := _CLOSURE if must else _UNFIT.get(kind.__name__.lower()):
        raise UserError(f"`--optim {optim}` cannot train this: {reason}", "pass another, such as `adamw_torch`")
    return kind


def _class_at(path: str) -> Any:
    package, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        top = package.split(".")[0]
        hint = EXTRA if top in _PACKAGED else f"run `pip install {top.replace('_', '-')}`"
        raise UserError(f"`--optim {path}` cannot be imported: {error}", hint) from error


def _packaged(name: str) -> Any:
    if find_spec("pytorch_optimizer") is None:
        what = f"`--optim {name}` is not known to transformers, and the package pytorch-optimizer is not installed"
        raise UserError(what, EXTRA)
    import pytorch_optimizer

    if name.lower() not in (known := pytorch_optimizer.get_supported_optimizers()):
        raise UserError(
            f"`--optim {name}` is not known", closest_name_hint(name.lower(), [*TRANSFORMERS, *known, "package.Class"])
        )
    return pytorch_optimizer.load_optimizer(name.lower())
