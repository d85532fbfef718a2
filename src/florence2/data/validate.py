"""Checks before training: skipped rows, undecodable images, and the train/validation split."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

from florence2.data.image import ImageError
from florence2.data.sample import SENTENCE_REASONS, ResolvedDataset, Sample, Skipped, SkipReason
from florence2.errors import DatasetError

OnMissing = Literal["error", "skip"]

ALWAYS_SKIPPED = (SkipReason.FAILED,)
_CHUNK = 1024  # images submitted to the threads at a time


def raise_on_skipped(dataset: ResolvedDataset, on_missing: OnMissing) -> ResolvedDataset:
    """Return the dataset, or raise the DatasetError that counts and names the skipped images.

    With `on_missing="skip"` it raises only if no sample is left.
    """
    for reason in SkipReason:
        skipped = [row for row in dataset.skipped if row.reason is reason]
        if skipped and ((on_missing == "error" and reason not in ALWAYS_SKIPPED) or not dataset.samples):
            raise _skipped_error(dataset, reason, skipped)
    if not dataset.samples:
        raise DatasetError(f"{dataset.source} contains no samples")
    return dataset


def skip_hint(hint: str) -> str:
    """Add `--on_missing skip` to a hint."""
    return f"{hint}, or pass --on_missing skip" if hint else "pass --on_missing skip to skip such images"


def _skipped_error(dataset: ResolvedDataset, reason: SkipReason, skipped: Sequence[Skipped]) -> DatasetError:
    first, total = skipped[0], dataset.num_images
    number = len({row.id for row in skipped})
    hint = first.hint if reason in ALWAYS_SKIPPED or not dataset.samples else skip_hint(first.hint)
    if reason is SkipReason.MALFORMED:
        more = f", the first of {len(skipped):,} rows that cannot be read" if len(skipped) > 1 else ""
        return DatasetError(f"{first.where}{more}", hint)
    is_unreadable = reason in SENTENCE_REASONS
    if total == 1:
        return DatasetError(first.where if is_unreadable else f"{first.where} {_SINGULAR[reason]}", hint)
    count = "all" if number == total else f"{number:,} of"
    verb = _SINGULAR[reason] if number == 1 else reason.value
    example = f", the first: {first.where}" if is_unreadable else f", the first is {first.where}"
    return DatasetError(f"{count} {total:,} images in {dataset.source} {verb}{example}", hint)


_SINGULAR = {
    SkipReason.NO_CAPTION: "has no caption",
    SkipReason.ABSENT: "does not exist",
    SkipReason.UNREADABLE: "cannot be read",
    SkipReason.UNREADABLE_CAPTION: "has a caption that cannot be read",
    SkipReason.FAILED: "could not be captioned before",
}


def check_images(
    dataset: ResolvedDataset,
    *,
    on_missing: OnMissing = "error",
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> ResolvedDataset:
    """Decode every image once, on threads, and treat those that cannot be read like missing captions.

    A dataset whose targets are all empty raises a DatasetError.

    JPEGs are decoded at an eighth of their size, which still reads all their bytes. `progress` is called with the
    number of checked images, from the calling thread.
    """
    first_sample = {sample.id: sample for sample in reversed(dataset.samples)}
    unreadable: dict[str, Skipped] = {}
    for checked, skipped in enumerate(_decode_all(list(first_sample.values()), workers), start=1):
        if skipped is not None:
            unreadable[skipped.id] = skipped
        if progress is not None:
            progress(checked)
    samples = [sample for sample in dataset.samples if sample.id not in unreadable]
    in_order = [unreadable[id_] for id_ in dict.fromkeys(s.id for s in dataset.samples) if id_ in unreadable]
    checked_dataset = replace(dataset, samples=samples, skipped=[*dataset.skipped, *in_order])
    raise_on_skipped(checked_dataset, on_missing)
    if not any(sample.target for sample in samples):
        raise DatasetError(
            f"the targets of all {len(samples):,} samples in {dataset.source} are empty",
            "check that the annotations belong to these images",
        )
    return checked_dataset


def _decode_all(samples: Sequence[Sample], workers: int | None) -> Iterator[Skipped | None]:
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(samples), _CHUNK):
            yield from threads.map(_decode, samples[start : start + _CHUNK])


def _decode(sample: Sample) -> Skipped | None:
    try:
        sample.open(min_size=(1, 1))
    except ImageError as error:
        return Skipped(sample.id, SkipReason.UNREADABLE, error.what, error.hint)
    return None


def train_val_split(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split samples into (train, validation) by image; equal seeds give equal splits.

    Where there are two images or more, each side has at least one. The order of samples is preserved.
    """
    ids = sorted({sample.id for sample in samples})
    if fraction <= 0 or len(ids) < 2:
        return list(samples), []
    validation = set(random.Random(seed).sample(ids, min(max(round(len(ids) * fraction), 1), len(ids) - 1)))
    return [s for s in samples if s.id not in validation], [s for s in samples if s.id in validation]
