"""Lessons from a stream: each process and each worker takes its share, and a resume goes on where the stream stopped.

A stream has no length and no epochs that a training could count: it is `max_steps` long. Knows neither the model nor
how a step is taken.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from florence2.data.image import ImageError
from florence2.data.streams.stream import SampleStream, Shard
from florence2.errors import UserError
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.dataset.sampler import SampleDraw
from florence2.training.dataset.training_data import TrainingDataConfig

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


def check_streaming(
    data: TrainingDataConfig,
    trainer_args: Mapping[str, Any],
    lora_args: Mapping[str, Any],
    *,
    saves_by_epoch: bool = False,
    samples_by_epoch: bool = False,
) -> None:
    """Refuse options that need the number of samples, or all samples, before the first step.

    `saves_by_epoch` and `samples_by_epoch` tell whether `--save_every_n_epochs` and `--sample_every_n_epochs` are set.
    """
    if not data.streaming:
        return
    max_steps = trainer_args.get("max_steps")
    if not isinstance(max_steps, int) or max_steps <= 0:
        raise UserError("`--streaming` needs a number of steps", "pass `--trainer_args max_steps=N`")
    conflicts = (
        (len(data.datasets) > 1, "several datasets", "merge them into one, or remove `--streaming`"),
        (bool(data.sampling_weights), "`--sampling_weights`", "remove one of them"),
        (isinstance(data.val_dataset, float), f"`--val_dataset {data.val_dataset}`", "pass a dataset instead"),
        (saves_by_epoch, "`--save_every_n_epochs`", "pass `--save_every_n_steps`"),
        (samples_by_epoch, "`--sample_every_n_epochs`", "pass `--sample_every_n_steps`"),
        (lora_args.get("init_lora_weights") == "eva", "`--lora_args init_lora_weights=eva`", "remove one of them"),
        (
            trainer_args.get("train_sampling_strategy") == "group_by_length",
            "`--trainer_args train_sampling_strategy=group_by_length`",
            "remove one of them",
        ),
    )
    for is_set, option, hint in conflicts:
        if is_set:
            raise UserError(f"`--streaming` cannot be combined with {option}", hint)
