"""The vision tower compiled for training: most of a step's time is spent there, and its shapes hardly change.

Knows the model's parts by name.
"""

from torch import nn

from florence2.config import TrainSettings
from florence2.errors import UserError
from florence2.machine import require_compiler


def check_compile(settings: TrainSettings) -> None:
    """Refuse to compile where nothing can be gained, or nothing can be compiled, before anything is read."""
    if not settings.learning.compile:
        return
    if settings.model.freeze == "vision":
        raise UserError(
            "`--compile` makes the vision tower faster, and with `--freeze vision` each picture is looked at once",
            "leave one of them out",
        )
    require_compiler("`--compile`")


def compile_vision(learner: nn.Module, backend: str = "inductor") -> None:
    """Compile in place, when the first batch comes; names of weights and copies of the model stay as they are."""
    for name, module in learner.named_modules():
        if name.endswith("model.vision_tower"):
            module.compile(backend=backend)
