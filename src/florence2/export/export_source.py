"""The model that is exported: loaded in float32 on the CPU, with an adapter merged, and what is known of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florence2.data.sample import Sample
from florence2.model.adapter.adapter_files import Adapter, read_adapter
from florence2.model.load import load
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage.run_metadata import RunMetadata, read_run_metadata
from florence2.model.tasks import Task, find_task

_CARD = "README.md"
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ExportSource:
    """A loaded model; `adapter` is what was merged into it, `card` the text of its model card.

    `samples` are images of the user, on which ranges of activations are measured for 8 bits; `base_model` replaces the
    base that the adapter names.
    """

    name: str
    folder: Path
    model: Any
    processor: Any
    adapter: Adapter | None
    metadata: RunMetadata | None
    card: str
    offline: bool
    samples: Sequence[Sample] = ()
    base_model: str | None = None

    @classmethod
    def load(
        cls,
        name: str,
        revision: str | None = None,
        *,
        offline: bool = False,
        samples: Sequence[Sample] = (),
        base_model: str | None = None,
    ) -> "ExportSource":
        """Load whatever `florence2 predict` loads."""
        folder = checkpoint.find_folder(name, revision, offline)
        model, processor = load(
            name, dtype="float32", device="cpu", revision=revision, offline=offline, base=base_model
        )
        card = folder / _CARD
        return cls(
            name=name,
            folder=folder,
            model=model,
            processor=processor,
            adapter=_read_adapter(folder, base_model),
            metadata=read_run_metadata(folder),
            card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
            offline=offline,
            samples=samples,
            base_model=base_model,
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
        return self.base_model or trained_from or self.name

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


def _read_adapter(folder: Path, base_model: str | None) -> Adapter | None:
    """Read the adapter in a folder, with another base where one is passed; its revision is one of its own base."""
    if not checkpoint.is_adapter(folder):
        return None
    adapter = read_adapter(folder)
    if base_model in (None, adapter.base):
        return adapter
    config = {**adapter.config, "base_model_name_or_path": base_model, "revision": None}
    return replace(adapter, base=base_model, revision=None, config=config)
