"""Parameter groups: trainable weights by learning rate and weight decay."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from florence2.errors import OptionError
from florence2.model.adapter.target_modules import is_in_component

Group = dict[str, Any]


@dataclass(frozen=True)
class GroupRates:
    """Learning rate and weight decay, and the groups that differ.

    `vision` replaces the learning rate in the vision component; `lora_plus_ratio` multiplies that of LoRA's B matrices.
    """

    learning_rate: float
    weight_decay: float = 0.0
    lora_plus_ratio: float | None = None
    vision: float | None = None

    @property
    def has_custom_rates(self) -> bool:
        """Return whether groups differ in their learning rate."""
        return self.lora_plus_ratio is not None or self.vision is not None


class _GroupKey(NamedTuple):
    is_vision: bool
    is_lora_b: bool
    has_no_decay: bool
    uses_muon: bool


def parameter_groups(model: nn.Module, rates: GroupRates, muon: bool = False) -> list[Group]:
    """Group the trainable weights; norms and biases have no weight decay.

    With `muon` each group has `use_muon`: true for the matrices that Muon orthogonalizes, false for Adam's weights.
    """
    no_decay, matrices = _names_without_decay(model), _matrix_names(model) if muon else set()
    groups: dict[_GroupKey, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            is_vision = rates.vision is not None and is_in_component(name, "vision")
            is_lora_b = rates.lora_plus_ratio is not None and ".lora_B." in name
            groups.setdefault(_GroupKey(is_vision, is_lora_b, name in no_decay, name in matrices), []).append(weight)
    if rates.vision is not None and not any(key.is_vision for key in groups):
        raise OptionError(
            "`--vision_learning_rate` applies to no trainable weight", "remove it, or remove `--freeze vision`"
        )
    return [_group(key, weights, rates, muon) for key, weights in sorted(groups.items(), key=lambda item: item[0])]


def _group(key: _GroupKey, weights: list[nn.Parameter], rates: GroupRates, muon: bool) -> Group:
    rate = rates.vision if key.is_vision and rates.vision is not None else rates.learning_rate
    group: Group = {
        "params": weights,
        "lr": rate * (rates.lora_plus_ratio if key.is_lora_b and rates.lora_plus_ratio is not None else 1),
        "weight_decay": 0.0 if key.has_no_decay else rates.weight_decay,
    }
    return group | ({"use_muon": key.uses_muon} if muon else {})


def _names_without_decay(model: nn.Module) -> set[str]:
    names = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            # The magnitudes of DoRA are the norms of a matrix's columns.
            if isinstance(module, nn.LayerNorm) or name.endswith("bias") or ".lora_magnitude_vector." in name:
                names.add(name)
    return names


def _matrix_names(model: nn.Module) -> set[str]:
    """Return the names of hidden matrices: neither embeddings nor the output layer."""
    names = set()
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not prefix.endswith("lm_head"):
            names |= {name for name, weight in module.named_parameters(prefix, recurse=False) if weight.dim() > 1}
    return names
