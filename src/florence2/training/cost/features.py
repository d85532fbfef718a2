"""Picture features that are computed once, where nothing that sees pictures learns: a file beside the checkpoints.

One row for each sample, in half precision, with a mark behind each that is whole; a run that was killed goes on where
it stopped. The file is bounded: where it would be too large there is none. Also, how a model takes features where it
took pictures. Knows the model's vision half by name only.

Shapes: B pictures, N picture places, D the model's width, H and W the model's picture size.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from florence2.training.lessons.batches import Lessons

FOLDER = ".features"
LIMIT = 64 * 2**30  # bytes
BATCH = 8
SPARE = 0.1  # share of the disk that stays free


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


def name_of(lessons: Lessons, model_name: str, revision: str | None, dtype: torch.dtype) -> str:
    """Name a set of pictures under a model, safely: by a hash of what both are."""
    pictures = []
    for sample in lessons.samples:
        stamp = sample.picture.stat() if isinstance(sample.picture, Path) else None
        pictures.append([sample.id, stamp and [stamp.st_size, stamp.st_mtime_ns]])
    told = json.dumps([model_name, revision, str(dtype), lessons.processing.size, pictures])
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def with_features(
    lessons: Lessons, learner: Any, folder: Path, base: tuple[str, str | None], dtype: torch.dtype
) -> Lessons:
    """Give lessons whose pictures stay closed, their features computed; or the same ones, where the disk is small.

    `base` is the model's name and revision, which tell its features from those of others.
    """
    shape = (lessons.processing.num_image_tokens, int(learner.config.text_config.d_model))
    file = FeatureFile(folder / FOLDER, name_of(lessons, *base, dtype), len(lessons), shape)
    if not len(lessons) or not file.fits():
        return lessons
    return replace(lessons, features=fill(lessons, file, seer(learner, lessons, dtype), BATCH))


def fill(
    lessons: Lessons,
    file: FeatureFile,
    see: Callable[[torch.Tensor], torch.Tensor],
    batch: int,
) -> np.memmap:
    """Compute what is missing, `batch` pictures at a time, and give all features.

    Batches are the same in every run, because in others the last bits would differ.
    """
    features, done = file.open()
    for start in range(0, len(done), batch):
        which = slice(start, min(start + batch, len(done)))
        if done[which].all():
            continue
        pixels_BHWC = torch.from_numpy(np.stack([lessons.pixels(at) for at in range(which.start, which.stop)]))
        features[which] = see(pixels_BHWC).to(torch.float16).cpu().numpy()
        features.flush()
        done[which] = 1
        done.flush()
    return features


def seer(learner: Any, lessons: Lessons, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Give the function from bytes (B, H, W, 3) to features (B, N, D), as training would compute them."""
    device = next(learner.parameters()).device

    def see(pixels_BHWC: torch.Tensor) -> torch.Tensor:
        learner.eval()
        pixels = lessons.processing.normalize(pixels_BHWC.to(device))
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features: torch.Tensor = _inner(learner).get_image_features(pixels).pooler_output
        return features

    return see


def join(learner: Any) -> None:
    """Let the model put features in front of the words without a look at them: every prompt begins with its picture.

    transformers looks for the picture's places and counts them, at which a GPU must be waited for. What comes in the
    place of pixels and has the shape of features is taken for them.
    """
    inner = _inner(learner)
    inner.forward = Joined(inner)


class Joined:
    """The forward of a `Florence2Model`; what is no step of learning goes transformers' way."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, input_ids: Any = None, pixel_values: Any = None, **given: Any) -> Any:
        """Take ids (B, S) and pixels (B, 3, H, W) or features (B, N, D), and whatever else it takes."""
        inner, plain = self._inner, type(self._inner).forward
        if input_ids is None or pixel_values is None or given.get("encoder_outputs") is not None:
            return plain(inner, input_ids=input_ids, pixel_values=pixel_values, **given)
        are_features = pixel_values.ndim == 3
        seen_BND = pixel_values if are_features else inner.get_image_features(pixel_values).pooler_output
        words_BSD = inner.get_input_embeddings()(input_ids[:, seen_BND.shape[1] :])
        embeds_BSD = torch.cat((seen_BND.to(words_BSD.dtype), words_BSD), 1)
        return plain(inner, **(given | {"inputs_embeds": embeds_BSD}))


def clear(folder: Path) -> None:
    """Remove the features of a training that is finished."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _inner(learner: Any) -> Any:
    whole = learner.get_base_model() if hasattr(learner, "get_base_model") else learner
    return whole.model
