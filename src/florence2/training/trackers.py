"""Experiment trackers beyond transformers' callbacks: their names, an early start of wandb, annotated images."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from florence2.distributed import is_main_process
from florence2.errors import MissingPackageError, OptionError, UserError
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

    So a missing login is one clear error.
    """
    if "wandb" not in names or not is_main_process():
        yield
        return
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
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
