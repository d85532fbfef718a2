"""Where a LoRA attaches, and which half of the model a weight lies in."""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from florence2.config import LoraSettings
from florence2.errors import UserError

DEFAULT_TARGET_MODULES: tuple[str, ...] = LoraSettings().target_modules
MODULE_PREFIXES = {
    "vision": ("model.vision_tower.", "model.multi_modal_projector."),
    "language": ("model.language_model.", "lm_head."),
}
_PARTS = {"vision": "model.vision_tower.", "language": "model.language_model."}


def resolve_target_modules(model: nn.Module, names: str | Sequence[str]) -> list[str]:
    """Return the full paths of the layers that `names` mean, sorted; a name that means none is an error."""
    layers = [name for name, module in model.named_modules() if _can_carry(module)]
    names = [names] if isinstance(names, str) else list(names)
    found = {name: _matches(name, layers) for name in names}
    if lost := [name for name, paths in found.items() if not paths]:
        known = sorted({layer.rpartition(".")[2] for layer in layers})
        raise UserError(
            f"target modules that match no layer: {', '.join(f'`{name}`' for name in lost)}",
            f"leave them out; there are {', '.join(known)}, all-linear, vision, language",
        )
    return sorted({path for paths in found.values() for path in paths})


def is_in_component(name: str, half: str) -> bool:
    """Tell whether a weight or a module lies in a half, `vision` or `language`, with a LoRA around it or without.

    Nothing lies in `none`.
    """
    return f"{name.removeprefix('base_model.model.')}.".startswith(MODULE_PREFIXES.get(half, ()))


def _can_carry(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _matches(name: str, layers: Iterable[str]) -> list[str]:
    if name in _PARTS:
        inside = [layer for layer in layers if layer.startswith(_PARTS[name])]
        return [layer for layer in inside if layer.rpartition(".")[2] in DEFAULT_TARGET_MODULES]
    if name == "all-linear":
        return [layer for layer in layers if layer != "lm_head" and not layer.endswith(".conv")]
    if plain := [layer for layer in layers if f".{layer}".endswith(f".{name}")]:
        return plain
    try:
        pattern = re.compile(name)
    except re.error:
        return []
    return [layer for layer in layers if pattern.fullmatch(layer)]
