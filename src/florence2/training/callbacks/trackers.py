"""Trackers where transformers' own callbacks are not enough: Weights & Biases opened early, and pictures shown.

Weights & Biases is opened before the trainer starts, so that a missing login is one clear line.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.integrations import TensorBoardCallback, WandbCallback

from florence2.distributed import is_main_process
from florence2.errors import UserError


@contextmanager
def open_trackers(names: Sequence[str], folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Keep a run of Weights & Biases open, if it is among the trackers; its files lie in `folder`."""
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


def log_samples(callbacks: Iterable[Any], step: int, images: Mapping[str, Path], words: Mapping[str, str]) -> None:
    """Show pictures with their words to TensorBoard and Weights & Biases, where they are used."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            for name, path in images.items():
                with Image.open(path) as image:
                    pixels_HWC = np.asarray(image.convert("RGB"))
                callback.tb_writer.add_image(f"samples/{name}", pixels_HWC, step, dataformats="HWC")
        if isinstance(callback, WandbCallback) and images:
            import wandb

            drawn = {f"samples/{name}": wandb.Image(str(path), caption=words[name]) for name, path in images.items()}
            wandb.log(drawn | {"train/global_step": step})  # the callback's own count of steps
