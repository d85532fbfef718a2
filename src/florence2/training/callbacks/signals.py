"""Graceful stop of training on SIGTERM and Ctrl-C."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import torch
from transformers import TrainerCallback, TrainerControl, TrainingArguments

from florence2.errors import UserError


class TrainingInterrupted(UserError):  # noqa: N818  a requested stop is no error
    """Training was stopped by a signal after it wrote a checkpoint."""


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Writes a checkpoint and stops at the first SIGTERM or Ctrl-C; a second one ends the process.

    A context manager: it handles the signals only inside of it, and only in the main thread, where Python allows it.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self.previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            signals = (signal.SIGINT, signal.SIGTERM)
            self.previous_handlers = {number: signal.signal(number, self._request) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.is_requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.is_requested = True

    def on_step_end(self, args: TrainingArguments, _: Any, control: TrainerControl, **__: Any) -> TrainerControl:
        """Save and stop, at the same step in all processes."""
        if args.world_size > 1:
            is_requested = torch.tensor(float(self.is_requested), device=args.device)
            torch.distributed.all_reduce(is_requested, torch.distributed.ReduceOp.MAX)
            self.is_requested = bool(is_requested.item())
        if self.is_requested:
            control.should_save = control.should_training_stop = True
        return control
