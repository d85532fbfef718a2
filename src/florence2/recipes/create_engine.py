"""Who answers: an engine in this process, one on each of several devices, or one in each process of a launcher.

Wiring only. Whoever asks sees one engine, and does not know where the answers come from.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from florence2.config import PredictSettings, WeightsSettings
from florence2.devices import pick_device, pick_dtype, slow_choice
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineSettings, GenerationSettings
from florence2.engine.generate_engine import Reference
from florence2.engine.workers.launcher import gather, join, launched
from florence2.engine.workers.multi_engine import Fleet
from florence2.engine.workers.worker import Brief, work
from florence2.errors import UserError
from florence2.model.load import load
from florence2.results.progress import say


def engine_for(settings: PredictSettings, generation: GenerationSettings, expected: int) -> Engine | Reference | Fleet:
    """Give what answers so many samples, as the settings say; a context manager."""
    rank, devices = launched(), _devices(settings)
    _warn(settings.model.dtype, devices)
    if rank is None and len(devices) == 1:
        kind = Engine if settings.speed.engine == "slots" else Reference
        return kind(*loaded(settings.model, devices[0]), _how(settings, generation, expected))
    if settings.speed.engine == "reference":
        raise UserError("`--engine reference` answers on one device", "leave it out, or give one device")
    processes = rank.world if rank else len(devices)
    brief = Brief(partial(loaded, settings.model), _how(settings, generation, expected // processes))
    if rank is None:
        return Fleet(brief, devices, tell=say)
    return Fleet(brief, [rank.device(devices[0])] if expected else [], gather(rank), tell=say)


def follow(settings: PredictSettings) -> None:
    """Answer what the first of the launched processes asks."""
    rank = launched()
    assert rank is not None
    work(join(rank), rank.device(_devices(settings)[0]))


def loaded(chosen: WeightsSettings, device: str | None) -> tuple[Any, Any]:
    """Load the model that answers, onto a device."""
    where = pick_device(device)
    dtype = pick_dtype(chosen.dtype, where, learns=False)
    return load(chosen.model_path, dtype=dtype, device=where, revision=chosen.revision, offline=chosen.offline)


def _how(settings: PredictSettings, generation: GenerationSettings, expected: int) -> EngineSettings:
    return EngineSettings(
        generation=generation,
        batch_size=settings.speed.batch_size,
        num_workers=settings.speed.num_workers,
        exact_pixels=settings.speed.exact_pixels,
        compile=settings.speed.compile,
        expected=expected,
    )


def _devices(settings: PredictSettings) -> list[str | None]:
    """List the devices asked for; a number is that of a GPU."""
    one, several = settings.model.device, settings.speed.devices
    if several is None:
        return [one]
    if one is not None or launched():
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
    if is_asked and (note := slow_choice(pick_dtype(dtype, on_cpu, learns=False), on_cpu)):
        say(note)
