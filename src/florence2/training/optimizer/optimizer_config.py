"""Configuration of the optimizer and its learning rate schedule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from florence2.settings_io import parse_pairs, parse_value

ONECYCLE = "onecycle"


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, learning rates and schedule of a run.

    `args` holds further arguments of the optimizer's constructor. `vision_learning_rate` replaces `learning_rate` in
    the vision component. `lora_plus_ratio` multiplies the learning rate of LoRA's B matrices.
    """

    name: str
    learning_rate: float
    lr_scheduler_type: str
    args: Mapping[str, Any] = field(default_factory=dict)
    vision_learning_rate: float | None = None
    lora_plus_ratio: float | None = None

    @property
    def uses_one_cycle(self) -> bool:
        """Return whether the schedule is torch's `OneCycleLR`."""
        return self.lr_scheduler_type.lower() == ONECYCLE


def parse_optimizer_args(words: Sequence[str]) -> dict[str, Any]:
    """Parse the `key=value` words of `--optimizer_args`."""
    return {name: parse_value(word) for name, word in parse_pairs("--optimizer_args", tuple(words)).items()}
