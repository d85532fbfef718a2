"""Picture features that are computed once, where nothing that sees pictures learns: a file beside the checkpoints.

One row for each picture, in half precision, with a mark behind each that is whole; a run that was killed goes on where
it stopped. The file is bounded: where it would be too large there is none. Also, how a model takes features where it
took pictures. Knows the model's vision half by name only.

Shapes: B pictures, N picture places, D the model's width, H and W the model's picture size.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.performance.feature_forward import inner_model

FOLDER = ".features"
LIMIT = 64 * 2**30  # bytes
BATCH = 8
OPENERS, AHEAD = 4, 2  # threads that open pictures; batches of them that wait to be looked at
SPARE = 0.1  # share of the disk that stays free


# Told how many there are and how many were done before, gives what is told how many more are done.
Counting = Callable[[int, int], AbstractContextManager[Callable[[int], None]]]


def no_progress(*_: int) -> AbstractContextManager[Callable[[int], None]]:
    """Count nothing."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class FeatureFile:
    """Features of one set of samples under one model; `name` tells sets apart."""

    folder: Path
    name: str
    rows: int
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        """Count the bytes of the file."""
        return self.rows * self.shape[0] * self.shape[1] * 2

    def fits(self) -> bool:
        """Tell whether the file is within its bounds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(self.folder)
        return self.size <= min(LIMIT, disk.free - SPARE * disk.total) or self._path("f16").exists()

    def open(self) -> tuple[np.memmap, np.memmap]:
        """Map the features (rows, N, D) and the marks (rows) into memory; what is new is zero."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._map("f16", np.float16, (self.rows, *self.shape)), self._map("done", np.uint8, (self.rows,))

    def _map(self, ending: str, kind: type, shape: tuple[int, ...]) -> np.memmap:
        path = self._path(ending)
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        if not path.exists() or path.stat().st_size != size:
            with path.open("wb") as file:
                file.truncate(size)
        return np.memmap(path, dtype=kind, mode="r+", shape=shape)

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"


@dataclass(frozen=True)
class SampleFeatures:
    """The features of samples, (N, D) each, several of which may show one picture."""

    features: np.ndarray
    row_of: list[int]

    def __getitem__(self, at: int) -> np.ndarray:
        features_ND: np.ndarray = self.features[self.row_of[at]]
        return features_ND


def first_index_by_image(dataset: Florence2Dataset) -> tuple[list[int], list[int]]:
    """Find the pictures of samples: the first sample that shows each, and for each sample its picture's row."""
    firsts: list[int] = []
    rows: dict[Any, int] = {}
    row_of = []
    for at, sample in enumerate(dataset.samples):
        key = sample.image if isinstance(sample.image, Path) else id(sample.image)
        if key not in rows:
            rows[key] = len(firsts)
            firsts.append(at)
        row_of.append(rows[key])
    return firsts, row_of


def cache_key(dataset: Florence2Dataset, model_name: str, revision: str | None, dtype: torch.dtype) -> str:
    """Name a set of pictures under a model, safely: by a hash of what both are."""
    images = []
    for sample in (dataset.samples[at] for at in first_index_by_image(dataset)[0]):
        stamp = sample.image.stat() if isinstance(sample.image, Path) else None
        images.append([sample.id, stamp and [stamp.st_size, stamp.st_mtime_ns]])
    told = json.dumps([model_name, revision, str(dtype), dataset.preprocessor.size, images])
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def use_cached_features(
    dataset: Florence2Dataset,
    learner: Any,
    folder: Path,
    base: tuple[str, str | None],
    dtype: torch.dtype,
    counting: Counting = no_progress,
) -> SampleFeatures | None:
    """Compute the image features of a dataset's samples and cache them on disk; None where the disk is too small.

    `base` is the model's name and revision, which tell its features from those of others.
    """
    firsts, row_of = first_index_by_image(dataset)
    shape = (dataset.preprocessor.num_image_tokens, int(learner.config.text_config.d_model))
    file = FeatureFile(folder / FOLDER, cache_key(dataset, *base, dtype), len(firsts), shape)
    if not len(dataset) or not file.fits():
        return None
    features = compute_missing(dataset, firsts, file, feature_fn(learner, dataset, dtype), counting)
    return SampleFeatures(features, row_of)


def compute_missing(
    dataset: Florence2Dataset,
    firsts: Sequence[int],
    file: FeatureFile,
    see: Callable[[torch.Tensor], torch.Tensor],
    counting: Counting = no_progress,
    batch: int = BATCH,
) -> np.memmap:
    """Compute what is missing of the pictures that some samples show, and give all features.

    Batches are the same in every run, because in others the last bits would differ. Threads open pictures ahead.
    """
    features, done = file.open()
    batches = [slice(start, min(start + batch, len(done))) for start in range(0, len(done), batch)]
    missing = [rows for rows in batches if not done[rows].all()]
    before = len(done) - sum(rows.stop - rows.start for rows in missing)
    with counting(len(done), before) as advance:
        for rows, pixels_BHWC in _opened(dataset, firsts, missing):
            features[rows] = see(pixels_BHWC).to(torch.float16).cpu().numpy()
            features.flush()
            done[rows] = 1
            done.flush()
            advance(rows.stop - rows.start)
    return features


def _opened(
    dataset: Florence2Dataset, firsts: Sequence[int], batches: Sequence[slice]
) -> Iterator[tuple[slice, torch.Tensor]]:
    ahead: deque[tuple[slice, list[Future[np.ndarray]]]] = deque()
    with ThreadPoolExecutor(OPENERS) as pool:
        try:
            for rows in batches:
                ahead.append((rows, [pool.submit(dataset.pixels, at) for at in firsts[rows]]))
                if len(ahead) > AHEAD:
                    yield _stacked(*ahead.popleft())
            while ahead:
                yield _stacked(*ahead.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _stacked(rows: slice, opening: Sequence[Future[np.ndarray]]) -> tuple[slice, torch.Tensor]:
    return rows, torch.from_numpy(np.stack([each.result() for each in opening]))


def feature_fn(learner: Any, dataset: Florence2Dataset, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Give the function from bytes (B, H, W, 3) to features (B, N, D), as training would compute them."""
    device = next(learner.parameters()).device

    def see(pixels_BHWC: torch.Tensor) -> torch.Tensor:
        learner.eval()
        pixels = dataset.preprocessor.normalize(pixels_BHWC.to(device))
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features: torch.Tensor = inner_model(learner).get_image_features(pixels).pooler_output
        return features

    return see


def clear_features(folder: Path) -> None:
    """Remove the features of a training that is finished."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
