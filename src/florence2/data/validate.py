"""What is settled before training starts: which pictures can be learnt from, and which are held out.

Knows nothing of where samples come from.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from florence2.data.image import ImageError
from florence2.data.sample import ResolvedDataset, Sample, Skipped, SkipReason
from florence2.errors import UserError

OnMissing = Literal["error", "skip"]

_ALWAYS_SKIPPED = (SkipReason.FAILED,)
_CHUNK = 1024  # pictures that are handed to the threads at a time


def raise_on_skipped(found: ResolvedDataset, missing: OnMissing) -> ResolvedDataset:
    """Return what was found, or raise the UserError that counts and names the pictures nothing can be learnt from.

    With `missing="skip"` it is an error only if nothing is left.
    """
    for why in SkipReason:
        named = [skipped for skipped in found.skipped if skipped.reason is why]
        if named and ((missing == "error" and why not in _ALWAYS_SKIPPED) or not found.samples):
            raise _refusal(found, why, named)
    if not found.samples:
        raise UserError(f"{found.source} holds no samples")
    return found


def _refusal(found: ResolvedDataset, why: SkipReason, named: Sequence[Skipped]) -> UserError:
    first, total = named[0], found.num_images
    number = len({skipped.id for skipped in named})
    mend = first.hint
    if why not in _ALWAYS_SKIPPED and found.samples:
        mend = f"{mend}, or pass --on_missing skip" if mend else "pass --on_missing skip to leave it out"
    unreadable = why is SkipReason.UNREADABLE  # then `where` already says what is wrong
    if total == 1:
        return UserError(first.where if unreadable else f"{first.where} {_SINGULAR[why]}", mend)
    many = "all" if number == total else f"{number:,} of"
    verb = _SINGULAR[why] if number == 1 else why.value
    such = f", the first: {first.where}" if unreadable else f", the first is {first.where}"
    return UserError(f"{many} {total:,} pictures in {found.source} {verb}{such}", mend)


_SINGULAR = {
    SkipReason.NO_CAPTION: "has no caption",
    SkipReason.ABSENT: "does not exist",
    SkipReason.UNREADABLE: "cannot be read",
    SkipReason.FAILED: "could not be captioned before",
}


def check_images(
    found: ResolvedDataset,
    *,
    missing: OnMissing = "error",
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> ResolvedDataset:
    """Decode every picture once, on threads, and settle those that cannot be read like missing captions.

    JPEGs are decoded at an eighth of their size, which still reads all their bytes. `progress` is called with the
    number of pictures done, from the calling thread.
    """
    first_of = {sample.id: sample for sample in reversed(found.samples)}
    bad: dict[str, Skipped] = {}
    for done, skipped in enumerate(_unreadable(list(first_of.values()), workers), start=1):
        if skipped is not None:
            bad[skipped.id] = skipped
        if progress is not None:
            progress(done)
    kept = [sample for sample in found.samples if sample.id not in bad]
    in_order = [bad[sample_id] for sample_id in dict.fromkeys(s.id for s in found.samples) if sample_id in bad]
    return raise_on_skipped(ResolvedDataset(found.source, found.root, kept, [*found.skipped, *in_order]), missing)


def _unreadable(samples: Sequence[Sample], workers: int | None) -> Iterator[Skipped | None]:
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(samples), _CHUNK):
            yield from threads.map(_tried, samples[start : start + _CHUNK])


def _tried(sample: Sample) -> Skipped | None:
    try:
        sample.open(min_size=(1, 1))
    except ImageError as error:
        return Skipped(sample.id, SkipReason.UNREADABLE, error.what, error.hint)
    return None


def train_val_split(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Part samples into (training, validation), all of one picture on one side, alike for alike seeds.

    At least one picture goes to each side where there are two; the order of samples is kept.
    """
    ids = sorted({sample.id for sample in samples})
    if fraction <= 0 or len(ids) < 2:
        return list(samples), []
    held = set(random.Random(seed).sample(ids, min(max(round(len(ids) * fraction), 1), len(ids) - 1)))
    return [s for s in samples if s.id not in held], [s for s in samples if s.id in held]
