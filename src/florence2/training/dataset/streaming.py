"""Training on a stream: each process and each worker reads its own shard, and a resumed run continues where it stopped.

The length of a stream is not known, so `max_steps` limits the training.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from florence2.data.image import ImageError
from florence2.data.streams.stream import SampleStream, Shard
from florence2.errors import OptionError, UserError
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.dataset.sampler import SampleDraw
from florence2.training.dataset.training_data import TrainingDataConfig


@dataclass(frozen=True, eq=False)
class StreamingDataset(IterableDataset[dict[str, Any]]):
    """An iterable dataset of the examples that one process reads from a stream.

    `dataset` augments and converts the samples. The examples of the first `consumed_batches` batches of `batch_size`
    are skipped.
    """

    dataset: Florence2Dataset
    stream: SampleStream
    batch_size: int = 1
    process_index: int = 0
    num_processes: int = 1
    consumed_batches: int = 0

    @classmethod
    def for_process(cls, dataset: Florence2Dataset, stream: SampleStream, args: Any) -> "StreamingDataset":
        """Make the dataset of this process; `args` are transformers' training arguments."""
        return cls(dataset, stream, args.train_batch_size, args.process_index, args.world_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._examples()
        except UserError as error:
            if get_worker_info() is None:
                raise
            yield {"error": (error.what, error.hint)}

    def _examples(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker_id, num_workers = (info.id, info.num_workers) if info else (0, 1)
        # A data loader takes batches from its workers in turn and starts with the first. After a resume, the first
        # worker therefore reads the shard of the worker whose turn is next.
        worker = (worker_id + self.consumed_batches) % num_workers
        consumed = self.consumed_batches // num_workers + (worker < self.consumed_batches % num_workers)
        shard = Shard(self.process_index * num_workers + worker, self.num_processes * num_workers)
        for item in self.stream.items(shard, consumed * self.batch_size):
            draw = SampleDraw(item.epoch, item.position * shard.num_shards + shard.index, -1)
            try:
                yield self.dataset.example(item.sample, draw)
            except ImageError:
                if self.stream.on_missing == "error":
                    raise


@dataclass(frozen=True, eq=False)
class ResumableDataLoader:
    """A data loader of a stream; each iteration starts after `consumed_batches()` batches.

    `options` are arguments of torch's `DataLoader`.
    """

    dataset: StreamingDataset
    consumed_batches: Callable[[], int]
    options: dict[str, Any]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        dataset = replace(self.dataset, consumed_batches=self.consumed_batches())
        # Its own generator leaves the global random state, which the training uses, unchanged.
        return iter(DataLoader(dataset, dataset.batch_size, generator=torch.Generator(), **self.options))


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
        raise OptionError("`--streaming` needs a number of steps", "pass `--trainer_args max_steps=N`")
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
            raise OptionError(f"`--streaming` cannot be combined with {option}", hint)
