"""What the commands choose where no flag says otherwise, and why, for this machine and one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import florence2
from florence2.config import SpeedSettings, TrainSettings
from florence2.devices import LARGE_MODEL_PARAMETERS, has_bfloat16, inference_dtype, pick_device, training_dtype
from florence2.settings_io import setting_defaults


@dataclass(frozen=True)
class Choice:
    """A choice of a command: its flag, the value, and the reason."""

    flag: str
    value: Any
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the choice as a JSON object."""
        return {"flag": self.flag, "value": self.value, "reason": self.reason}


def predict_choices(device: torch.device, engine: florence2.Engine) -> list[Choice]:
    """Return the choices of `florence2 predict` for the model of an engine that was made without options."""
    speed = SpeedSettings()
    dtype = inference_dtype("auto", device)
    slots = engine.stats.slots
    return [
        Choice("--device", str(device), _device_reason(device)),
        Choice("--dtype", str(dtype)[6:], _dtype_reason(device, dtype)),
        Choice("--batch_size", slots, _slots_reason(device)),
        Choice("--engine", speed.engine, "the default; the same tokens as `generate` in float32"),
        Choice("--num_workers", speed.num_workers, "the default number of images that are loaded at a time"),
    ]


def train_choices(device: torch.device, num_parameters: int) -> list[Choice]:
    """Return the choices of `florence2 train` for a model with so many parameters."""
    dtype, defaults = training_dtype("auto", device, num_parameters), setting_defaults(TrainSettings)
    fixed = "the default; `--auto_batch` finds the largest that fits without changing the steps"
    return [
        Choice("--device", str(device), _device_reason(device)),
        Choice("--dtype", str(dtype)[6:], _dtype_reason(device, dtype)),
        Choice("--batch_size", defaults["batch_size"], fixed),
        Choice("--num_workers", defaults["num_workers"], "the default: the main process loads the images"),
    ]


def default_device() -> torch.device:
    """Return the device that both commands choose."""
    return pick_device()


def _device_reason(device: torch.device) -> str:
    if device.type == "cpu":
        return "torch finds no GPU"
    others = torch.cuda.device_count() - 1 if device.type == "cuda" else 0
    return f"the first GPU; `--devices` uses the other {others}, too" if others else "the only GPU that torch finds"


def _slots_reason(device: torch.device) -> str:
    part = "half of the free memory of the GPU" if device.type == "cuda" else "a quarter of the memory"
    return f"the most slots that pay on this kind of device, or as many as fit {part}"


def _dtype_reason(device: torch.device, dtype: torch.dtype) -> str:
    if dtype == torch.bfloat16:
        return "this device has native bfloat16 support"
    if dtype == torch.float16:
        return "this GPU has no native bfloat16 support"
    if has_bfloat16(device):
        return f"a model of less than {LARGE_MODEL_PARAMETERS:,} parameters is trained in float32 on a CPU"
    return "this CPU has no native bfloat16 support"
