"""A store of drawn scenes at the model's size, so that a picture is drawn once and learnt from many times.

It knows nothing of models.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from florence2.demo.scenes import Scene, make_scene

SIDE = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as Florence-2 has them
FIRST_SEED = 10_000_000  # scenes to learn from begin here; whoever wants unseen ones takes smaller seeds
STRETCH = 1000  # scenes drawn between two reports and kept if the build is cut short

Pixels = npt.NDArray[np.uint8]


def small_image(made: Scene) -> Pixels:
    """Draw a scene and resize it as the model's image processor does, uint8 HWC."""
    return np.asarray(made.render().resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def draw_store(folder: Path, num: int, report: Callable[[int, int], None]) -> list[Pixels]:
    """Return `num` pictures of the seeds from `FIRST_SEED`, in stretches; draws only those not in `folder` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    stretches = []
    for start in range(0, num, STRETCH):
        file = folder / f"pictures-{start:07d}.npy"
        if not file.exists():
            wanted = min(STRETCH, num - start)
            drawn = np.stack([small_image(make_scene(FIRST_SEED + start + i)) for i in range(wanted)])
            unfinished = file.with_suffix(".part")
            with unfinished.open("wb") as stream:
                np.save(stream, drawn)
            unfinished.replace(file)
            report(start + len(drawn), num)
        stretches.append(np.load(file, mmap_mode="r"))
    return stretches
