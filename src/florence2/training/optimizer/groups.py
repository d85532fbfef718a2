"""Which weights move how fast: groups of weights that share a learning rate and a decay."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from florence2.errors import UserError
from florence2.model.adapter.target_modules import is_in_component

Group = dict[str, Any]


@dataclass(frozen=True)
class GroupRates:
    """The learning rate and the decay, and who departs from them.

    `vision` is the learning rate of the picture half; LoRA's B matrices learn `lora_plus` times faster than their A.
    """

    learning: float
    decay: float = 0.0
    lora_plus: float | None = None
    vision: float | None = None

    @property
    def has_custom_rates(self) -> bool:
        """Tell whether some weights learn faster than others."""
        return self.lora_plus is not None or self.vision is not None


class _Part(NamedTuple):
    is_vision: bool
    is_lora_b: bool
    undecayed: bool
    by_muon: bool


def parameter_groups(model: nn.Module, rates: GroupRates, muon: bool = False) -> list[Group]:
    """Part the trained weights; norms and biases do not decay.

    With `muon` each group says whether it holds the matrices that Muon and its kin turn, or what they leave to Adam.
    """
    plain, matrices = _undecayed(model), _matrices(model) if muon else set()
    parts: dict[_Part, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            sees = rates.vision is not None and is_in_component(name, "vision")
            fast = rates.lora_plus is not None and ".lora_B." in name
            parts.setdefault(_Part(sees, fast, name in plain, name in matrices), []).append(weight)
    if rates.vision is not None and not any(part.is_vision for part in parts):
        raise UserError("`--vision_learning_rate` finds no weight that learns", "leave it out, or `--freeze vision`")
    return [_group(part, weights, rates, muon) for part, weights in sorted(parts.items(), key=lambda item: item[0])]


def _group(part: _Part, weights: list[nn.Parameter], rates: GroupRates, muon: bool) -> Group:
    rate = rates.vision if part.is_vision and rates.vision is not None else rates.learning
    group: Group = {
        "params": weights,
        "lr": rate * (rates.lora_plus if part.is_lora_b and rates.lora_plus is not None else 1),
        "weight_decay": 0.0 if part.undecayed else rates.decay,
    }
    return group | ({"use_muon": part.by_muon} if muon else {})


def _undecayed(model: nn.Module) -> set[str]:
    found = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            # DoRA's magnitudes are the norms of a matrix's columns.
            if isinstance(module, nn.LayerNorm) or name.endswith("bias") or ".lora_magnitude_vector." in name:
                found.add(name)
    return found


def _matrices(model: nn.Module) -> set[str]:
    """Name the matrices between features: not the tables of tokens and places, and not the output layer."""
    found = set()
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not prefix.endswith("lm_head"):
            found |= {name for name, weight in module.named_parameters(prefix, recurse=False) if weight.dim() > 1}
    return found
