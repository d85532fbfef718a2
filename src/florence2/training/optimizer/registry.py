"""Look-up of optimizers by name: transformers' own, the package `pytorch-optimizer`, or any importable class."""

import importlib
import inspect
from importlib.util import find_spec
from typing import Any

import torch
from transformers.training_args import OptimizerNames

from florence2.errors import MissingPackageError, OptionError
from florence2.settings_io import closest_name_hint

EXTRA = "run `pip install 'florence2[optimizers]'`"
TRANSFORMERS = tuple(name.value for name in OptimizerNames)
# transformers groups the weights of these itself, or passes them the model.
MADE_BY_TRANSFORMERS = ("galore", "apollo", "lomo", "adalomo")
# The extra installs these modules; their packages have other names.
_MODULES_OF_EXTRA = ("prodigyplus", "pytorch_optimizer", "schedulefree", "bitsandbytes")
_CLOSURE = "it evaluates the loss again within a step"
_GRAPH = "it needs second derivatives"
# These need more than parameter groups and gradients.
_UNSUPPORTED = {
    **dict.fromkeys(("alig", "bsam", "lbfgs"), _CLOSURE),
    **dict.fromkeys(("adahessian", "sophiah"), _GRAPH),
    "adammini": "it takes the model itself",
}


def check_name(optim: str) -> None:
    """Raise OptionError if a name is no optimizer."""
    if optim not in TRANSFORMERS:
        optimizer_class(optim)


def is_made_by_transformers(optim: str) -> bool:
    """Return whether transformers must create an optimizer, because it groups the weights itself."""
    return optim in TRANSFORMERS and optim.startswith(MADE_BY_TRANSFORMERS)


def optimizer_class(optim: str) -> Any:
    """Return the class of an optimizer: `package.Class`, or a name of `pytorch-optimizer`."""
    cls = _import_class(optim) if "." in optim else _pytorch_optimizer_class(optim)
    if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
        raise OptionError(
            f"`{optim}` is no subclass of `torch.optim.Optimizer`", "pass a class such as `torch.optim.SGD`"
        )
    closure = inspect.signature(cls.step).parameters.get("closure")
    needs_closure = closure is not None and closure.default is inspect.Parameter.empty
    if reason := _CLOSURE if needs_closure else _UNSUPPORTED.get(cls.__name__.lower()):
        raise OptionError(f"`--optim {optim}` cannot train this model: {reason}", "pass another, such as `adamw_torch`")
    return cls


def _import_class(path: str) -> Any:
    package, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        top = package.split(".")[0]
        hint = EXTRA if top in _MODULES_OF_EXTRA else f"run `pip install {top.replace('_', '-')}`"
        raise MissingPackageError(f"`--optim {path}` cannot be imported: {error}", hint) from error


def _pytorch_optimizer_class(name: str) -> Any:
    if find_spec("pytorch_optimizer") is None:
        what = f"`--optim {name}` is unknown to transformers, and the package pytorch-optimizer is not installed"
        raise MissingPackageError(what, EXTRA)
    import pytorch_optimizer

    if name.lower() not in (known := pytorch_optimizer.get_supported_optimizers()):
        raise OptionError(
            f"`--optim {name}` is not known", closest_name_hint(name.lower(), [*TRANSFORMERS, *known, "package.Class"])
        )
    return pytorch_optimizer.load_optimizer(name.lower())
