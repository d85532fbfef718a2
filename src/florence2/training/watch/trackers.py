"""Trackers that must be open before the trainer starts: Weights & Biases, so that a missing login is one clear line.

All others are opened by transformers' own callbacks.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from florence2.errors import UserError


@contextmanager
def opened(names: Sequence[str], folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Keep a run of Weights & Biases open, if it is among the trackers; its files lie in `folder`."""
    if "wandb" not in names or int(os.environ.get("RANK", "0")) > 0:
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
