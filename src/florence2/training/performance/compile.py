"""Parts of a model compiled for training: the vision tower, and on a GPU the layers of the language half.

The tower is where most of the time goes, and its shapes hardly change; a GPU runs the many small operations of the
language half together. Knows the model's parts by name and class.
"""

from torch import nn
from transformers.models.bart.modeling_bart import BartDecoderLayer, BartEncoderLayer

from florence2.config import TrainSettings
from florence2.devices import pick_device
from florence2.errors import UserError
from florence2.system import require_compiler


def check_can_compile(settings: TrainSettings) -> None:
    """Refuse to compile where nothing can be gained, or nothing can be compiled, before anything is read."""
    if not settings.training.compile:
        return
    if settings.model.freeze == "vision" and pick_device(settings.model.device).type == "cpu":
        raise UserError(
            "`--compile` makes the vision tower faster, and with `--freeze vision` each picture is looked at once",
            "leave one of them out",
        )
    require_compiler("`--compile`")


def compile_model(learner: nn.Module, backend: str = "inductor") -> None:
    """Compile in place, when the first batch comes; names of weights and copies of the model stay as they are.

    A CPU gains nothing in the language half, which does little but multiply. Its layers are alike, so on a GPU two or
    three are compiled for all of them, and for any length.
    """
    on_gpu = next(learner.parameters()).device.type == "cuda"
    for name, module in learner.named_modules():
        if name.endswith("model.vision_tower"):
            module.compile(backend=backend)
        elif on_gpu and isinstance(module, (BartEncoderLayer, BartDecoderLayer)):
            module.compile(backend=backend, dynamic=True)
