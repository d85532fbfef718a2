"""Writer of a trained model: weights, processor and run metadata."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from florence2.model.adapter.lora import save_adapter
from florence2.model.storage.run_metadata import RunMetadata, write_run_metadata


@dataclass(frozen=True)
class ModelSaver:
    """Writes what inference needs into a folder: adapter or model, processor, run metadata."""

    processor: Any
    metadata: RunMetadata

    def __call__(self, model: nn.Module, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a model; `state_dict` replaces the model's own weights where those are sharded."""
        if isinstance(model, PeftModel):
            save_adapter(model, folder, self.metadata.base, self.metadata.revision, state_dict)
        else:
            pretrained: Any = model
            pretrained.save_pretrained(folder, state_dict=None if state_dict is None else dict(state_dict))
        self.processor.save_pretrained(folder)
        write_run_metadata(folder, self.metadata)
