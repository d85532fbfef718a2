"""Disk cache of image features for a frozen vision component: each image is encoded once.

The file has a row of float16 for each image. A second file marks the complete rows, so a killed run resumes. There is
no cache if the file would be too large for the disk.

Shapes: B images, N image tokens, D the model's width, H and W the model's image size.
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
from florence2.training.prepare_model import TrainableModel

FOLDER = ".features"
MAX_BYTES = 64 * 2**30
BATCH_SIZE = 8
NUM_THREADS, PREFETCHED_BATCHES = 4, 2
RESERVE_FRACTION = 0.1  # of the disk stays free


# Takes the total and the number that is complete; its context yields a function that adds to the latter.
Progress = Callable[[int, int], AbstractContextManager[Callable[[int], None]]]


def no_progress(*_: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show no progress."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class FeatureFile:
    """File of the features of one set of images by one model; `name` identifies both."""

    folder: Path
    name: str
    rows: int
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        """Count the bytes of the file."""
        return self.rows * self.shape[0] * self.shape[1] * 2

    def fits(self) -> bool:
        """Return whether the file exists or the disk has room for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(self.folder)
        return self.size <= min(MAX_BYTES, disk.free - RESERVE_FRACTION * disk.total) or self._path("f16").exists()

    def open(self) -> tuple[np.memmap, np.memmap]:
        """Map the features (rows, N, D) and the marks (rows) into memory; new files are zero."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._map("f16", np.float16, (self.rows, *self.shape)), self._map("done", np.uint8, (self.rows,))

    def _map(self, suffix: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        path = self._path(suffix)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not path.exists() or path.stat().st_size != size:
            with path.open("wb") as file:
                file.truncate(size)
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"


@dataclass(frozen=True)
class SampleFeatures:
    """Features of samples, (N, D) each; samples of one image share a row."""

    features: np.ndarray
    row_of: list[int]

    def __getitem__(self, index: int) -> np.ndarray:
        features_ND: np.ndarray = self.features[self.row_of[index]]
        return features_ND


def first_index_by_image(dataset: Florence2Dataset) -> tuple[list[int], list[int]]:
    """Return the index of the first sample of each image, and the row of the image for each sample."""
    first_indices: list[int] = []
    rows: dict[Any, int] = {}
    row_of = []
    for index, sample in enumerate(dataset.samples):
        key = sample.image if isinstance(sample.image, Path) else id(sample.image)
        if key not in rows:
            rows[key] = len(first_indices)
            first_indices.append(index)
        row_of.append(rows[key])
    return first_indices, row_of


def cache_key(dataset: Florence2Dataset, model_name: str, revision: str | None, dtype: torch.dtype) -> str:
    """Return a hash of the model and of the images, which names their file."""
    images = []
    for sample in (dataset.samples[index] for index in first_index_by_image(dataset)[0]):
        stat = sample.image.stat() if isinstance(sample.image, Path) else None
        images.append([sample.id, stat and [stat.st_size, stat.st_mtime_ns]])
    identity = json.dumps([model_name, revision, str(dtype), dataset.preprocessor.size, images])
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def compute_cached_features(
    dataset: Florence2Dataset,
    model: TrainableModel,
    folder: Path,
    base: tuple[str, str | None],
    dtype: torch.dtype,
    progress: Progress = no_progress,
) -> SampleFeatures | None:
    """Compute the image features of a dataset's samples and cache them on disk; None if the disk is too small.

    `base` is the name and the revision of the base model.
    """
    first_indices, row_of = first_index_by_image(dataset)
    shape = (dataset.preprocessor.num_image_tokens, int(inner_model(model).config.text_config.d_model))
    file = FeatureFile(folder / FOLDER, cache_key(dataset, *base, dtype), len(first_indices), shape)
    if not len(dataset) or not file.fits():
        return None
    features = compute_missing(dataset, first_indices, file, feature_fn(model, dataset, dtype), progress)
    return SampleFeatures(features, row_of)


def compute_missing(
    dataset: Florence2Dataset,
    first_indices: Sequence[int],
    file: FeatureFile,
    encode: Callable[[torch.Tensor], torch.Tensor],
    progress: Progress = no_progress,
    batch_size: int = BATCH_SIZE,
) -> np.memmap:
    """Compute the missing features of images, and return all features.

    Every run has the same batches, because other batches change the last bits. Threads open images ahead.
    """
    features, done = file.open()
    batches = [slice(start, min(start + batch_size, len(done))) for start in range(0, len(done), batch_size)]
    missing = [rows for rows in batches if not done[rows].all()]
    completed = len(done) - sum(rows.stop - rows.start for rows in missing)
    with progress(len(done), completed) as advance:
        for rows, pixels_BHWC in _pixel_batches(dataset, first_indices, missing):
            features[rows] = encode(pixels_BHWC).to(torch.float16).cpu().numpy()
            features.flush()
            done[rows] = 1
            done.flush()
            advance(rows.stop - rows.start)
    return features


def _pixel_batches(
    dataset: Florence2Dataset, first_indices: Sequence[int], batches: Sequence[slice]
) -> Iterator[tuple[slice, torch.Tensor]]:
    prefetched: deque[tuple[slice, list[Future[np.ndarray]]]] = deque()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            for rows in batches:
                prefetched.append((rows, [pool.submit(dataset.pixels, index) for index in first_indices[rows]]))
                if len(prefetched) > PREFETCHED_BATCHES:
                    yield _stack(*prefetched.popleft())
            while prefetched:
                yield _stack(*prefetched.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _stack(rows: slice, futures: Sequence[Future[np.ndarray]]) -> tuple[slice, torch.Tensor]:
    return rows, torch.from_numpy(np.stack([future.result() for future in futures]))


def feature_fn(
    model: TrainableModel, dataset: Florence2Dataset, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from uint8 pixels (B, H, W, 3) to features (B, N, D), as training computes them."""
    device = next(model.parameters()).device

    def encode(pixels_BHWC: torch.Tensor) -> torch.Tensor:
        model.eval()
        pixels = dataset.preprocessor.normalize(pixels_BHWC.to(device))
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features: torch.Tensor = inner_model(model).get_image_features(pixels).pooler_output
        return features

    return encode


def clear_features(folder: Path) -> None:
    """Remove the cache of a finished run."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
