"""JPEGs of 1 and 12 megapixels for benchmarks that read images from disk."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((1154, 866), (4000, 3000))  # 1 and 12 megapixels


def make_images(folder: Path, count: int) -> list[str]:
    """Write JPEGs of 1 and 12 megapixels alternately: clouds with noise, all different."""
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(make_image, folder), range(count)))


def make_image(folder: Path, number: int) -> str:
    """Write one JPEG of one of the sizes."""
    return make_jpeg(folder, f"{number:04}", SIZES[number % len(SIZES)], number)


def make_jpeg(folder: Path, name: str, size: tuple[int, int], seed: int) -> str:
    """Write one JPEG."""
    grain = np.random.default_rng(seed)
    clouds = Image.fromarray(grain.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = grain.integers(0, 24, (size[1] // 2, size[0] // 2, 1), dtype=np.uint8)
    pixels = np.asarray(clouds) // 8 * 7 + noise.repeat(2, 0).repeat(2, 1)
    path = str(folder / f"{name}.jpg")
    Image.fromarray(pixels).save(path, quality=90)
    return path
