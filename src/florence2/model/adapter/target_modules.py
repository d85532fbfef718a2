"""Target modules of a LoRA, and the component, vision or language, of a module."""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from florence2.config import DEFAULT_TARGET_MODULES
from florence2.errors import OptionError

MODULE_PREFIXES = {
    "vision": ("model.vision_tower.", "model.multi_modal_projector."),
    "language": ("model.language_model.", "lm_head."),
}
_TARGET_PREFIXES = {"vision": "model.vision_tower.", "language": "model.language_model."}


def resolve_target_modules(model: nn.Module, names: str | Sequence[str]) -> list[str]:
    """Return the sorted paths of the layers that `names` match; raise OptionError for a name without a match."""
    layers = [name for name, module in model.named_modules() if _supports_lora(module)]
    names = [names] if isinstance(names, str) else list(names)
    matches = {name: _match(name, layers) for name in names}
    if unmatched := [name for name, paths in matches.items() if not paths]:
        known = sorted({layer.rpartition(".")[2] for layer in layers})
        raise OptionError(
            f"target modules that match no layer: {', '.join(f'`{name}`' for name in unmatched)}",
            f"choose from {', '.join(known)}, all-linear, vision, language",
        )
    return sorted({path for paths in matches.values() for path in paths})


def is_in_component(name: str, component: str) -> bool:
    """Return whether a weight or module, with or without a LoRA, is in a component: `vision` or `language`.

    No module is in the component `none`.
    """
    return f"{name.removeprefix('base_model.model.')}.".startswith(MODULE_PREFIXES.get(component, ()))


def _supports_lora(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _match(name: str, layers: Iterable[str]) -> list[str]:
    if name in _TARGET_PREFIXES:
        inside = [layer for layer in layers if layer.startswith(_TARGET_PREFIXES[name])]
        return [layer for layer in inside if layer.rpartition(".")[2] in DEFAULT_TARGET_MODULES]
    if name == "all-linear":
        return [layer for layer in layers if layer != "lm_head" and not layer.endswith(".conv")]
    if suffix_matches := [layer for layer in layers if f".{layer}".endswith(f".{name}")]:
        return suffix_matches
    try:
        pattern = re.compile(name)
    except re.error:
        return []
    return [layer for layer in layers if pattern.fullmatch(layer)]
