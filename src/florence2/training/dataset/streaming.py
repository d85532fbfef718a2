"""Lessons from a stream: each process and each worker takes its share, and a resume goes on where the stream stopped.

A stream has no length and no epochs that a training could count: it is `max_steps` long. Knows neither the model nor
how a step is taken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from florence2.config import TrainSettings
from florence2.data.image import ImageError
from florence2.data.streams.stream import SampleStream, Shard
from florence2.errors import UserError
from florence2.settings_io import parse_pairs, parse_value
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.dataset.sampler import SampleDraw

Batches = Iterator[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class StreamingDataset(IterableDataset[dict[str, Any]]):
    """The lessons of one process among `of`, `batch` by `batch`; `start` batches were taken before."""

    dataset: Florence2Dataset
    stream: SampleStream
    batch_size: int = 1
    process_index: int = 0
    num_processes: int = 1
    consumed_batches: int = 0

    @classmethod
    def for_process(cls, dataset: Florence2Dataset, stream: SampleStream, args: Any) -> "StreamingDataset":
        """Give what this process learns of a stream; `args` are transformers' training arguments."""
        return cls(dataset, stream, args.train_batch_size, args.process_index, args.world_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._items()
        except UserError as error:
            if get_worker_info() is None:
                raise
            yield {"problem": (error.what, error.hint)}

    def _items(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        # Workers give batches in turn, beginning with the first: so the first now is the one whose turn it was.
        worker = (number + self.consumed_batches) % workers
        taken = self.consumed_batches // workers + (worker < self.consumed_batches % workers)
        share = Shard(self.process_index * workers + worker, self.num_processes * workers)
        for passing in self.stream.items(share, taken * self.batch_size):
            draw = SampleDraw(passing.epoch, passing.position * share.num_shards + share.index, -1)
            try:
                yield self.dataset.example(passing.sample, draw)
            except ImageError:
                if self.stream.on_missing == "error":
                    raise


@dataclass(frozen=True, eq=False)
class ResumableDataLoader:
    """Loads batches from a stream: opened, it begins behind the batches that were `taken`."""

    dataset: StreamingDataset
    consumed_batches: Callable[[], int]
    options: dict[str, Any]

    def __iter__(self) -> Batches:
        pouring = replace(self.dataset, consumed_batches=self.consumed_batches())
        # A generator of its own keeps the seed of workers out of the training's random numbers.
        return iter(DataLoader(pouring, pouring.batch_size, generator=torch.Generator(), **self.options))


def check_streaming(settings: TrainSettings) -> None:
    """Refuse what needs to know all samples before the first step."""
    if not settings.data.streaming:
        return
    data, saving = settings.data, settings.saving
    door, lora = parse_pairs("--trainer_args", saving.trainer_args), parse_pairs("--lora_args", settings.lora.lora_args)
    steps = parse_value(door.get("max_steps", "-1"))
    if not isinstance(steps, int) or steps <= 0:
        raise UserError(
            "a stream has no end that is known, so `--epochs` says nothing", "pass `--trainer_args max_steps=N`"
        )
    for is_asked, flag, why in (
        (len(data.dataset) > 1, "several datasets", "one stream is read at a time"),
        (bool(data.sampling_weights), "`--sampling_weights`", "what comes by once cannot be drawn more often"),
        (_is_number(data.val_dataset), f"`--val_dataset {data.val_dataset}`", "a part of a stream cannot be held back"),
        (saving.save_every_n_epochs is not None, "`--save_every_n_epochs`", "a stream's epochs are not counted"),
        (saving.sample_every_n_epochs is not None, "`--sample_every_n_epochs`", "a stream's epochs are not counted"),
        (
            "init_lora_weights=eva" in settings.lora.lora_args,
            "EVA",
            "it looks at the first epoch before the first step",
        ),
        (door.get("train_sampling_strategy") == "group_by_length", "group_by_length", "the lengths are not known"),
        (lora.get("init_lora_weights") == "eva", "EVA", "it looks at the samples before the first step"),
    ):
        if is_asked:
            raise UserError(f"`--streaming` and {flag} do not go together: {why}", _INSTEAD.get(flag, "leave one out"))


_INSTEAD = {
    "`--save_every_n_epochs`": "pass `--save_every_n_steps`",
    "`--sample_every_n_epochs`": "pass `--sample_every_n_steps`",
}


def _is_number(word: str | None) -> bool:
    return word is not None and word.replace(".", "", 1).isdigit()
