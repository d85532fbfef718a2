"""A disk store of scenes rendered at the model's image size, so that each scene is rendered once.

It does not depend on any model.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from florence2.demo.scenes import Scene, make_scene
from florence2.files import atomic_write

IMAGE_SIZE = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in Florence-2
FIRST_SEED = 10_000_000  # the training scenes start at this seed; held-out scenes have smaller seeds
SHARD_SIZE = 1000  # scenes in one file of the store

Pixels = npt.NDArray[np.uint8]


def render_resized(scene: Scene) -> Pixels:
    """Render a scene and resize it as the model's image processor does; uint8 HWC."""
    return np.asarray(scene.render().resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def open_image_store(folder: Path, num_images: int, report: Callable[[int, int], None]) -> list[Pixels]:
    """Return the shards with the first `num_images` training images, rendering only those that `folder` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in range(0, num_images, SHARD_SIZE):
        file = folder / f"images-{start:07d}.npy"
        if not file.exists():
            seeds = range(FIRST_SEED + start, FIRST_SEED + min(start + SHARD_SIZE, num_images))
            pixels_BHWC = np.stack([render_resized(make_scene(seed)) for seed in seeds])
            with atomic_write(file, "wb") as stream:
                np.save(stream, pixels_BHWC)
            report(start + len(pixels_BHWC), num_images)
        shards.append(np.load(file, mmap_mode="r"))
    return shards
