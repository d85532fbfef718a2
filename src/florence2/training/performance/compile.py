"""`torch.compile` of parts of a model: the vision tower, and on a GPU the layers of the language component."""

import torch
from torch import nn
from transformers.models.bart.modeling_bart import BartDecoderLayer, BartEncoderLayer

from florence2.errors import OptionError
from florence2.log import logger
from florence2.system import require_compiler


def check_can_compile(freeze: str, device: torch.device) -> None:
    """Raise OptionError if compilation gains nothing or there is no compiler."""
    if freeze == "vision" and device.type == "cpu":
        raise OptionError(
            "`--compile` speeds up the vision tower, and with `--freeze vision` each image passes it once",
            "remove `--compile` or `--freeze vision`",
        )
    require_compiler("`--compile`")


def compile_model(model: nn.Module, backend: str = "inductor") -> None:
    """Compile parts of a model in place, at their first call; weight names and copies of the model do not change.

    The vision tower takes most of the time, and its shapes hardly change. A CPU gains nothing in the language
    component, whose time goes into matrix products. A GPU compiles two or three of its layers for all of them and for
    any length, because the layers are alike.
    """
    logger.info("the model is compiled at its first step, which takes some minutes longer")
    is_cuda = next(model.parameters()).device.type == "cuda"
    for name, module in model.named_modules():
        if name.endswith("model.vision_tower"):
            module.compile(backend=backend)
        elif is_cuda and isinstance(module, (BartEncoderLayer, BartDecoderLayer)):
            module.compile(backend=backend, dynamic=True)
