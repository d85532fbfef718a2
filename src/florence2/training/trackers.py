"""Experiment trackers beyond transformers' callbacks: their names, an early start of wandb, failures, and images."""

import netrc
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from florence2.distributed import is_main_process
from florence2.errors import MissingPackageError, OptionError, UserError
from florence2.log import logger
from florence2.settings_io import closest_name_hint
from florence2.system import switch_off_telemetry

_CONNECT_SECONDS, _INIT_SECONDS, _FINISH_SECONDS = 5, 30, 60


def resolve_trackers(log_with: str) -> list[str]:
    """Return the trackers that `--log_with` names; raise UserError for one that is unknown or not installed."""
    if log_with == "none":
        return []
    if log_with == "all":
        return list(get_available_reporting_integrations())
    names = log_with.split(",")
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["all", "none", *INTEGRATION_TO_CALLBACK]
            raise OptionError(f"`--log_with {name}` is not known", closest_name_hint(name, known))
        if name not in get_available_reporting_integrations():
            package = {"comet_ml": "comet_ml", "azure_ml": "azureml-sdk"}.get(name, name)
            raise MissingPackageError(
                f"`--log_with {name}` needs the package {package}", f"run `pip install {package}`"
            )
    return names


@contextmanager
def open_trackers(names: Sequence[str], folder: Path, settings: dict[str, Any], *, offline: bool) -> Iterator[None]:
    """Open a run of Weights & Biases in `folder`, if it is among the trackers, before the trainer exists.

    Offline, without a login, and where its server does not answer, the run is kept on this machine, and nobody waits.
    """
    if "wandb" not in names or not is_main_process():
        yield
        return
    switch_off_telemetry()
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT", "florence2"),
        "name": os.environ.get("WANDB_NAME", folder.name),
        "dir": os.environ.get("WANDB_DIR", str(folder)),
        "config": settings,
    }
    with _finish(_open_run(wandb, options, offline=offline)):
        yield


def _open_run(wandb: Any, options: Mapping[str, Any], *, offline: bool) -> Any:
    """Open a run, online where that is possible at once."""
    timeouts = {"init_timeout": _INIT_SECONDS, "finish_timeout": _FINISH_SECONDS}
    timeouts = {name: value for name, value in timeouts.items() if name in wandb.Settings.model_fields}
    reason = "" if offline else _offline_reason(wandb.Settings())
    if not offline and not reason:
        try:
            return wandb.init(**options, settings=wandb.Settings(**timeouts))
        except Exception as error:
            reason = f"Weights & Biases: {' '.join(str(error).split())}".rstrip(".")
    if reason:
        logger.warning(f"{reason}: the run stays on this machine until `wandb login`, `wandb sync`")
    try:
        return wandb.init(**options, mode="offline")
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Weights & Biases cannot be used: {reason}", "remove `--log_with wandb`") from error


@contextmanager
def _finish(run: Any) -> Iterator[None]:
    """Finish a run at the end of the block; that it cannot be finished does not end the training."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        try:
            run.finish(exit_code)
        except Exception as error:
            logger.warning(f"Weights & Biases did not finish the run: {error}")


def protect_training(callbacks: Iterable[Any]) -> None:
    """Switch a tracker off, with a warning, when one of its events fails, instead of ending the training."""
    names = {callback_class: name for name, callback_class in INTEGRATION_TO_CALLBACK.items()}
    for callback in callbacks:
        if name := names.get(type(callback)):
            guard = TrackerGuard(name)
            for event in (event for event in dir(TrainerCallback) if event.startswith("on_")):
                setattr(callback, event, guard.wrap(getattr(callback, event)))


class TrackerGuard:
    """Calls functions of a tracker until one of them fails."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.has_failed = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does nothing once the tracker has failed."""

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if self.has_failed:
                return None
            try:
                return function(*args, **options)
            except Exception as error:
                self.has_failed = True
                reason = " ".join(f"{type(error).__name__} {error}".split())
                logger.warning(f"the tracker `{self.name}` fails, and gets no more values; training goes on: {reason}")
                return None

        return call


def _offline_reason(settings: Any) -> str:
    """Return why a run cannot be sent, "" where it can, and where the mode is not to send it."""
    if settings.mode != "online":
        return ""
    if not _has_wandb_login(settings):
        return "no login of Weights & Biases"
    return "" if _is_reachable(settings.base_url) else f"{settings.base_url} of Weights & Biases does not answer"


def _is_reachable(address: str) -> bool:
    """Return whether a server, or the proxy in front of it, takes a connection."""
    url = urlparse(address)
    proxy = "" if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme, "")
    url = urlparse(proxy) if proxy else url
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _has_wandb_login(settings: Any) -> bool:
    """Return whether a key is stored, wandb can ask for it on a terminal, or the mode needs none."""
    if settings.mode != "online" or settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    if sys.stdin is not None and sys.stdin.isatty():
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return logins.authenticators(urlparse(settings.base_url).hostname or "") is not None


def log_samples(callbacks: Iterable[Any], step: int, images: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    """Log annotated images with their texts to TensorBoard and Weights & Biases, if they are trackers."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            TrackerGuard("tensorboard").wrap(_log_to_tensorboard)(callback.tb_writer, step, images)
        if isinstance(callback, WandbCallback) and images:
            TrackerGuard("wandb").wrap(_log_to_wandb)(step, images, texts)


def _log_to_tensorboard(writer: Any, step: int, images: Mapping[str, Path]) -> None:
    for name, path in images.items():
        with Image.open(path) as image:
            pixels_HWC = np.asarray(image.convert("RGB"))
        writer.add_image(f"samples/{name}", pixels_HWC, step, dataformats="HWC")


def _log_to_wandb(step: int, images: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    import wandb

    logged = {f"samples/{name}": wandb.Image(str(path), caption=texts[name]) for name, path in images.items()}
    wandb.log(logged | {"train/global_step": step})  # the callback's x axis
