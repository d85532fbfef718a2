"""The engine of a prediction run: one in this process, one per device, or one per process of a launcher.

All three run samples in the same way; their callers do not know where predictions are computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from florence2.config import HubSettings, InferenceDType, InferenceSettings
from florence2.devices import dtype_warning, inference_dtype, is_8_bit, local_device, pick_device
from florence2.distributed import LauncherRank, launcher_rank
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.quantization.quantize_model import quantize_model
from florence2.engine.workers.launcher import accept_workers, connect_to_leader
from florence2.engine.workers.multi_engine import MultiEngine
from florence2.engine.workers.worker import WorkerConfig, run_worker
from florence2.errors import CheckpointError, OptionError
from florence2.log import logger
from florence2.model.inference.load_inference_model import load_inference_model
from florence2.model.storage.checkpoint_files import find_folder, is_adapter

if TYPE_CHECKING:
    from florence2.engine.generate_engine import GenerateEngine


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint at one revision, which every process of a run loads; `folder` holds its files on this machine.

    `base` replaces the base that an adapter names.
    """

    name: str
    folder: Path
    revision: str | None
    offline: bool
    dtype: InferenceDType
    base: str | None = None

    @classmethod
    def resolve(cls, name: str, hub: HubSettings, dtype: InferenceDType, base: str | None = None) -> ModelSource:
        """Find a checkpoint on disk or download it, and pin the commit of a hub repository."""
        folder = find_folder(name, hub.revision, hub.offline)
        if base is not None and not is_adapter(folder):
            raise CheckpointError(f"`{name}` is not an adapter and takes no base", "remove `--base_model`")
        is_snapshot = folder.parent.name == "snapshots"  # of the hub's cache, named by the commit
        return cls(name, folder, folder.name if is_snapshot else hub.revision, hub.offline, dtype, base)

    @property
    def is_adapter(self) -> bool:
        """Return whether the files are those of an adapter."""
        return is_adapter(self.folder)

    def load(self, device: str | None) -> tuple[Any, Any]:
        """Load the model and its preprocessing onto a device, for the engine."""
        name, chosen, dtype = self._arguments(device)
        folder = self.folder if self.folder.is_dir() else find_folder(name, self.revision, self.offline)
        options: dict[str, Any] = {"dtype": dtype, "device": chosen, "offline": self.offline, "base": self.base}
        loaded = load_inference_model(folder, name, **options) or self.load_transformers(device)
        if is_8_bit(self.dtype):
            quantize_model(loaded[0], self.dtype)
        return loaded

    def load_transformers(self, device: str | None) -> tuple[Any, Any]:
        """Load transformers' model and processor onto a device; their imports take seconds."""
        from florence2.model.load import load

        name, chosen, dtype = self._arguments(device)
        return load(name, dtype=dtype, device=chosen, revision=self.revision, offline=self.offline, base=self.base)

    def _arguments(self, device: str | None) -> tuple[str, torch.device, torch.dtype]:
        """Return name, device and dtype; another machine finds the files under the name of the model."""
        chosen = pick_device(device)
        name = str(self.folder) if self.folder.is_dir() else self.name
        return name, chosen, inference_dtype(self.dtype, chosen)


def load_for_inference(
    name_or_path: str | Path,
    *,
    dtype: InferenceDType = "auto",
    device: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    base: str | Path | None = None,
) -> tuple[Any, Any]:
    """Load a model and its preprocessing for `Engine` and `AsyncEngine`, without the seconds of importing transformers.

    The arguments are those of `load`, and so are the predictions; `dtype` is one of `predict`, with the same default.
    The model can do nothing but run in an engine. Rare checkpoints and adapters give transformers' objects instead.
    """
    source = ModelSource.resolve(
        str(name_or_path), HubSettings(revision, offline), dtype, None if base is None else str(base)
    )
    return source.load(device)


@dataclass(frozen=True)
class EngineSpec:
    """Which engine predicts, with which model, on which devices; `rank` is this process's, where a launcher runs."""

    kind: Literal["continuous", "generate"]
    model: ModelSource
    devices: tuple[str | None, ...]
    config: EngineConfig
    rank: LauncherRank | None = None


def create_engine(spec: EngineSpec, num_samples: int) -> Engine | GenerateEngine | MultiEngine:
    """Create the engine for a number of samples; a context manager."""
    rank, devices = spec.rank, spec.devices
    _warn_of_slow_dtype(spec)
    if spec.kind == "generate" and is_8_bit(spec.model.dtype):
        what = f"`--engine generate` is transformers' own, which does not compute in `--dtype {spec.model.dtype}`"
        raise OptionError(what, "remove `--engine` or `--dtype`")
    if rank is None and len(devices) == 1:
        config = replace(spec.config, expected_samples=num_samples)
        if spec.kind == "continuous":
            return Engine(*spec.model.load(devices[0]), config)
        from florence2.engine.generate_engine import GenerateEngine  # imports transformers

        return GenerateEngine(*spec.model.load_transformers(devices[0]), config)
    if spec.kind == "generate":
        raise OptionError("`--engine generate` runs on one device", "remove `--engine`, or choose one device")
    num_processes = rank.world_size if rank else len(devices)
    workers = WorkerConfig(spec.model.load, replace(spec.config, expected_samples=num_samples // num_processes))
    if rank is None:
        return MultiEngine(workers, devices)
    own_device = [local_device(devices[0], rank.local_rank)] if num_samples else []
    return MultiEngine(workers, own_device, accept_workers(rank))


def serve_as_worker(rank: LauncherRank, device: str | None) -> None:
    """Predict the samples that the main process of a launcher sends."""
    run_worker(connect_to_leader(rank), local_device(device, rank.local_rank))


def parse_devices(compute: InferenceSettings, devices: str | None) -> tuple[str | None, ...]:
    """Read `--device` or the comma-separated `--devices`, in which a number names a GPU."""
    if devices is None:
        return (compute.device,)
    if compute.device is not None:
        raise OptionError("`--devices` and `--device` exclude each other", "remove one of them")
    if launcher_rank():
        raise OptionError("a launcher chooses the device of each process", "remove `--devices`")
    names = [name.strip() for name in devices.split(",")]
    if not all(names):
        raise OptionError(f"`--devices {devices}` has no name between two commas", "pass `0,1` or `cpu,cpu`")
    return tuple(f"cuda:{name}" if name.isdigit() else name for name in names)


def _warn_of_slow_dtype(spec: EngineSpec) -> None:
    """Warn once of a dtype that a CPU emulates; no GPU is initialized for it."""
    cpu = torch.device("cpu")
    uses_cpu = any((device or pick_device().type) == "cpu" for device in spec.devices)
    if uses_cpu and (note := dtype_warning(inference_dtype(spec.model.dtype, cpu), cpu)):
        logger.warning(note)
