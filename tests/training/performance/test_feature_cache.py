from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from florence2.errors import UserError
from florence2.training.performance.feature_cache import (
    FeatureFile,
    cache_key,
    compute_cached_features,
    compute_missing,
    feature_fn,
)
from tests.training.test_trainer import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "out", freeze="vision")


def test_loss_from_features_equals_loss_from_images(tmp_path: Path, bench: Bench) -> None:
    plain = bench.loss(0, 1, 2)
    features = compute_cached_features(bench.dataset, bench.model, tmp_path, ("base", None), torch.float32)
    bench.dataset = replace(bench.dataset, features=features)
    batch = bench.batch(0, 1, 2)
    assert "pixels_BHWC" not in batch
    assert batch["features_BND"].shape == (3, 5, 32)
    torch.testing.assert_close(bench.loss(0, 1, 2), plain, rtol=1e-3, atol=1e-3)
    pixels = bench.preprocessor.normalize(bench.dataset.pixels(0))[None]
    assert bench.base.get_image_features(pixels).pooler_output.shape == (1, 5, 32)  # pixels still work


def test_complete_rows_are_not_computed_again(tmp_path: Path, bench: Bench) -> None:
    file = FeatureFile(tmp_path, "a", len(bench.dataset), (5, 32))
    encode, batch_sizes = feature_fn(bench.model, bench.dataset, torch.float32), []

    def count(pixels: torch.Tensor) -> torch.Tensor:
        batch_sizes.append(len(pixels))
        return encode(pixels)

    first = np.array(compute_missing(bench.dataset, range(4), file, count, batch_size=3))
    assert batch_sizes == [3, 1]
    _, done = file.open()
    done[2] = 0  # as if killed before the third was complete
    again = compute_missing(bench.dataset, range(4), file, count, batch_size=3)
    assert batch_sizes == [3, 1, 3]
    assert np.array_equal(first, again)
    assert first.dtype == np.float16


def test_image_of_several_samples_is_encoded_once(tmp_path: Path, bench: Bench) -> None:
    one, other, *_ = bench.dataset.samples
    samples = [one, other, replace(one, target="another answer")]
    progress_calls: list[int] = []

    @contextmanager
    def progress(total: int, completed: int) -> Iterator[Callable[[int], None]]:
        progress_calls.extend((total, completed))
        yield progress_calls.append

    dataset = replace(bench.dataset, samples=samples)
    features = compute_cached_features(dataset, bench.model, tmp_path, ("base", None), torch.float32, progress)
    assert progress_calls == [2, 0, 2]
    dataset = replace(dataset, features=features)
    first, second, third = (dataset[at] for at in range(3))
    assert np.array_equal(first["features_ND"], third["features_ND"])
    assert not np.array_equal(first["features_ND"], second["features_ND"])
    assert first["labels"] != third["labels"]


def test_missing_image_raises(tmp_path: Path, bench: Bench) -> None:
    missing = replace(bench.dataset.samples[0], image=tmp_path / "gone.png")
    file = FeatureFile(tmp_path, "a", 1, (5, 32))
    with pytest.raises(UserError, match=r"gone\.png"):
        compute_missing(
            replace(bench.dataset, samples=[missing]), [0], file, feature_fn(bench.model, bench.dataset, torch.float32)
        )


def test_cache_key_depends_on_model_revision_and_dtype(bench: Bench) -> None:
    names = {
        cache_key(bench.dataset, base, revision, dtype)
        for base in ("a", "../../b")
        for revision in (None, "main")
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(names) == 8
    assert all(name.isalnum() for name in names)


def test_file_size_is_limited(tmp_path: Path, bench: Bench) -> None:
    assert not FeatureFile(tmp_path, "a", 10**9, (577, 768)).fits()
    assert FeatureFile(tmp_path, "a", 4, (5, 32)).fits()
