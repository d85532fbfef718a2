"""The model that is exported: loaded in float32 on the CPU, with an adapter merged, and what is known of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from florence2.data.sample import Sample
from florence2.model.load import load
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage.run_metadata import RunMetadata, read_run_metadata
from florence2.model.tasks import Task, find_task

if TYPE_CHECKING:
    from florence2.model.adapter.lora import Adapter

_CARD = "README.md"
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ExportSource:
    """A loaded model; `adapter` is what was merged into it, `card` the text of its model card.

    `samples` are images of the user, on which ranges of activations are measured for 8 bits.
    """

    name: str
    folder: Path
    model: Any
    processor: Any
    adapter: "Adapter | None"
    metadata: RunMetadata | None
    card: str
    offline: bool
    samples: Sequence[Sample] = ()

    @classmethod
    def load(
        cls, name: str, revision: str | None = None, *, offline: bool = False, samples: Sequence[Sample] = ()
    ) -> "ExportSource":
        """Load whatever `florence2 predict` loads."""
        folder = checkpoint.find_folder(name, revision, offline)
        model, processor = load(name, dtype="float32", device="cpu", revision=revision, offline=offline)
        card = folder / _CARD
        return cls(
            name=name,
            folder=folder,
            model=model,
            processor=processor,
            adapter=_read_adapter(folder),
            metadata=read_run_metadata(folder),
            card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
            offline=offline,
            samples=samples,
        )

    @property
    def task(self) -> Task:
        """The task that the model was trained on, or the caption."""
        return find_task(self.metadata.task if self.metadata else "caption")

    @property
    def vocab_size(self) -> int:
        """The number of tokens that the model generates: all but `<image>` and padding, which follow them."""
        return int(self.model.config.image_token_id)

    @property
    def base(self) -> str:
        """The name of the model that this one was trained from, or its own."""
        trained_from = self.metadata.base if self.metadata else self.adapter and self.adapter.base
        return trained_from or self.name

    @property
    def base_path(self) -> str:
        """The base of the adapter as `load` finds it from any folder: a hub id, `demo`, or an absolute path."""
        base = (self.adapter and self.adapter.base) or self.name
        relative = self.folder / base
        if base == checkpoint.DEMO or not (Path(base).is_dir() or relative.is_dir()):
            return base
        return str((Path(base) if Path(base).is_dir() else relative).resolve())


def short_name(name: str) -> str:
    """Return the name of a local folder without its path, which concerns this machine only; others do not change."""
    return Path(name).name if Path(name).is_dir() or Path(name).is_absolute() else name


def exact_dtype(weights: Iterable[Tensor]) -> str:
    """Return the smallest dtype that holds every weight exactly: that in which a checkpoint is stored."""
    floats = [each.detach().float() for each in weights if each.is_floating_point()]
    for name, dtype in _HALVES.items():
        if all(torch.equal(each.to(dtype).float(), each) for each in floats):
            return name
    return "float32"


def _read_adapter(folder: Path) -> "Adapter | None":
    if not checkpoint.is_adapter(folder):
        return None
    from florence2.model.adapter.lora import read_adapter  # importing peft takes seconds

    return read_adapter(folder)
