"""Experiment trackers beyond transformers' callbacks: their names, an early start of wandb, annotated images."""

import netrc
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from PIL import Image
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from florence2.distributed import is_main_process
from florence2.errors import MissingPackageError, OptionError, UserError
from florence2.log import logger
from florence2.settings_io import closest_name_hint


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
def open_trackers(names: Sequence[str], folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Open a run of Weights & Biases in `folder`, if it is among the trackers, before the trainer exists.

    Without a login the run is kept on this machine, and nobody waits for a server.
    """
    if "wandb" not in names or not is_main_process():
        yield
        return
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    is_offline = not _has_wandb_login(wandb.Settings())
    if is_offline:
        logger.warning("no login of Weights & Biases: the run stays on this machine until `wandb login`, `wandb sync`")
    try:
        run = wandb.init(
            mode="offline" if is_offline else None,
            project=os.environ.get("WANDB_PROJECT", "florence2"),
            name=os.environ.get("WANDB_NAME", folder.name),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            config=settings,
        )
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"Weights & Biases cannot be used: {reason}",
            "run `wandb login`, or set WANDB_MODE=offline to keep the run on this machine",
        ) from error
    with run:
        yield


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
            for name, path in images.items():
                with Image.open(path) as image:
                    pixels_HWC = np.asarray(image.convert("RGB"))
                callback.tb_writer.add_image(f"samples/{name}", pixels_HWC, step, dataformats="HWC")
        if isinstance(callback, WandbCallback) and images:
            import wandb

            logged = {f"samples/{name}": wandb.Image(str(path), caption=texts[name]) for name, path in images.items()}
            wandb.log(logged | {"train/global_step": step})  # the callback's x axis
