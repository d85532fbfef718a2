"""Checks before training: skipped rows, unreadable images, and the train/validation split."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from florence2.data.decoding.checked_images import CheckedImages
from florence2.data.decoding.decode_image import DecodeOptions
from florence2.data.decoding.image_decoders import ImageDecoders
from florence2.data.image import ImageError, ImageSource, image_size, open_image
from florence2.data.sample import SENTENCE_REASONS, ResolvedDataset, Sample, Skipped, SkipReason
from florence2.errors import DatasetError

OnMissing = Literal["error", "skip"]

ALWAYS_SKIPPED = (SkipReason.FAILED,)
_CHUNK = 1024  # images submitted to the threads at a time
_LARGEST_BATCH = 32  # images that a thread checks at a time


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
    decode_all: bool = False,
    checked_images: CheckedImages | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> ResolvedDataset:
    """Check every image once, on threads, and treat those that cannot be read like missing captions.

    The header of an image is read, and its end: a truncated file lacks it. Where neither tells enough, and with
    `decode_all`, the image is decoded, a JPEG at an eighth of its size. Damage in the middle of a file is found by
    decoding alone. A file that `checked_images` knows is not opened; what is found good is added to it, and saved.
    A dataset whose targets are all empty raises a DatasetError. `progress` is called with the number of checked
    images, from the calling thread.
    """
    first_sample = {sample.id: sample for sample in reversed(dataset.samples)}
    unreadable: dict[str, Skipped] = {}
    known = CheckedImages() if checked_images is None else checked_images
    check = partial(_check, known=known, decode_all=decode_all)
    for checked, skipped in enumerate(_check_all(list(first_sample.values()), check, workers), start=1):
        if skipped is not None:
            unreadable[skipped.id] = skipped
        if progress is not None:
            progress(checked)
    known.save()
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


def _check_all(
    samples: Sequence[Sample], check: Callable[[ImageDecoders, Sample], Skipped | None], workers: int | None
) -> Iterator[Skipped | None]:
    num_threads = workers or min(8, os.cpu_count() or 1)
    size = max(1, min(_LARGEST_BATCH, len(samples) // (4 * num_threads)))
    with ImageDecoders() as decoders, ThreadPoolExecutor(num_threads) as threads:
        for start in range(0, len(samples), _CHUNK):
            chunk = samples[start : start + _CHUNK]
            batches = (chunk[first : first + size] for first in range(0, len(chunk), size))
            for checked in threads.map(lambda batch: [check(decoders, sample) for sample in batch], batches):
                yield from checked


def _check(decoders: ImageDecoders, sample: Sample, *, known: CheckedImages, decode_all: bool) -> Skipped | None:
    try:
        source = sample.source()
        key = known.key(source) if isinstance(source, Path) else None
        if not known.is_good(key, decoded=decode_all):
            _open(decoders, source, sample.name, decode_all)
    except ImageError as error:
        return Skipped(sample.id, SkipReason.UNREADABLE, error.what, error.hint)
    known.add(key, decoded=decode_all)
    return None


def _open(decoders: ImageDecoders, source: ImageSource, name: str, decode_all: bool) -> None:
    """Read the header of an image, or decode it; raises ImageError."""
    if not decode_all and _has_end(source):
        image_size(source, name=name)
    elif isinstance(source, Path | bytes):
        decoders.decode(source, DecodeOptions(1, 1, Image.Resampling.NEAREST.value), name)
    else:
        open_image(source, name=name)


def _has_end(source: ImageSource) -> bool:
    """Return whether a JPEG, PNG or WebP file has its last bytes; False for other formats, and what is no file."""
    if isinstance(source, bytes):
        head, tail, size = source[:12], source[-12:], len(source)
    elif isinstance(source, Path):
        try:
            with source.open("rb") as file:
                head = file.read(12)
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - 12, 0))
                tail = file.read()
        except OSError:
            return False  # decoding names the error
    else:
        return False
    if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return (head.startswith(b"\xff\xd8\xff") and tail.endswith(b"\xff\xd9")) or (
        head.startswith(b"\x89PNG\r\n\x1a\n") and tail.endswith(b"IEND\xaeB`\x82")
    )


def train_val_split(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split samples into (train, validation) by image; equal seeds give equal splits.

    Where there are two images or more, each side has at least one. The order of samples is preserved.
    """
    ids = sorted({sample.id for sample in samples})
    if fraction <= 0 or len(ids) < 2:
        return list(samples), []
    validation = set(random.Random(seed).sample(ids, min(max(round(len(ids) * fraction), 1), len(ids) - 1)))
    return [s for s in samples if s.id not in validation], [s for s in samples if s.id in validation]
