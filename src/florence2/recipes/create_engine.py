"""Who answers: an engine in this process, one on each of several devices, or one in each process of a launcher.

Wiring only. Whoever asks sees one engine, and does not know where the answers come from.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from florence2.config import GenerationSettings, PredictSettings, WeightsSettings
from florence2.devices import dtype_warning, inference_dtype, local_device, pick_device
from florence2.distributed import launcher_rank
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.workers.launcher import accept_workers, connect_to_leader
from florence2.engine.workers.multi_engine import MultiEngine
from florence2.engine.workers.worker import WorkerConfig, run_worker
from florence2.errors import UserError
from florence2.log import logger
from florence2.model.load import load
from florence2.settings_io import parse_options, setting_names, settings_to_dict


def create_engine(
    settings: PredictSettings, generation: GenerationConfig, expected: int
) -> Engine | GenerateEngine | MultiEngine:
    """Give what answers so many samples, as the settings say; a context manager."""
    rank, devices = launcher_rank(), _devices(settings)
    _warn(settings.model.dtype, devices)
    if rank is None and len(devices) == 1:
        kind = Engine if settings.speed.engine == "continuous" else GenerateEngine
        return kind(*load_on_device(settings.model, devices[0]), _engine_config(settings, generation, expected))
    if settings.speed.engine == "generate":
        raise UserError("`--engine generate` answers on one device", "leave it out, or give one device")
    processes = rank.world_size if rank else len(devices)
    brief = WorkerConfig(
        partial(load_on_device, settings.model), _engine_config(settings, generation, expected // processes)
    )
    if rank is None:
        return MultiEngine(brief, devices, warn=logger.warning)
    return MultiEngine(
        brief,
        [local_device(devices[0], rank.local_rank)] if expected else [],
        accept_workers(rank),
        warn=logger.warning,
    )


def serve_as_worker(settings: PredictSettings) -> None:
    """Answer what the first of the launched processes asks."""
    rank = launcher_rank()
    assert rank is not None
    run_worker(connect_to_leader(rank), local_device(_devices(settings)[0], rank.local_rank))


def load_on_device(chosen: WeightsSettings, device: str | None) -> tuple[Any, Any]:
    """Load the model that answers, onto a device."""
    where = pick_device(device)
    dtype = inference_dtype(chosen.dtype, where)
    return load(chosen.model_path, dtype=dtype, device=where, revision=chosen.revision, offline=chosen.offline)


def parse_generation_config(flags: GenerationSettings) -> GenerationConfig:
    """Read the flags of generation and the `key=value` words of `--generation_args`; refuse unknown keys by name."""
    values = settings_to_dict(flags)
    words = values.pop("generation_args")
    options = parse_options("--generation_args", words, setting_names(GenerationConfig))
    for name, value in options.items():
        if name in values:
            raise UserError(f"`--generation_args {name}` has a flag of its own", f"pass `--{name}`")
        if not _is_valid_option(name, value):
            raise UserError(f"`--generation_args {name}={value}` is not valid", "see `florence2 predict --help`")
    return GenerationConfig(**values, **options)


def _is_valid_option(name: str, value: Any) -> bool:
    """Tell whether a value that was read from words has the type of its option."""
    if name == "early_stopping":
        return isinstance(value, bool) or value == "never"
    types = (int, float) if isinstance(getattr(GenerationConfig, name), float) else (int,)
    return isinstance(value, types) and not isinstance(value, bool)


def _engine_config(settings: PredictSettings, generation: GenerationConfig, expected: int) -> EngineConfig:
    return EngineConfig(
        generation=generation,
        batch_size=settings.speed.batch_size,
        num_workers=settings.speed.num_workers,
        full_decode=settings.speed.full_decode,
        compile=settings.speed.compile,
        expected_samples=expected,
    )


def _devices(settings: PredictSettings) -> list[str | None]:
    """List the devices asked for; a number is that of a GPU."""
    one, several = settings.model.device, settings.speed.devices
    if several is None:
        return [one]
    if one is not None or launcher_rank():
        other = "`--device`" if one is not None else "a launcher, which gives each process a device"
        raise UserError(f"`--devices` was given beside {other}", "leave one of them out")
    words = [word.strip() for word in several.split(",")]
    if not all(words):
        raise UserError(f"`--devices {several}` names no device between two commas", "write `0,1` or `cpu,cpu`")
    return [f"cuda:{word}" if word.isdigit() else word for word in words]


def _warn(dtype: str, devices: list[str | None]) -> None:
    """Say once that half precision is slow here; a GPU is not touched to find out."""
    on_cpu = torch.device("cpu")
    is_asked = any((device or pick_device().type) == "cpu" for device in devices)
    if is_asked and (note := dtype_warning(inference_dtype(dtype, on_cpu), on_cpu)):
        logger.warning(note)
