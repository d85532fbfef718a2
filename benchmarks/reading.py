"""Processor time of reading a JPEG to the model's pixels, by its size and by what decodes it, alternating.

    python -m benchmarks.reading
    python -m benchmarks.reading --engine_seconds 1.70 --images_per_second 250 800

Decoders: Pillow in full, Pillow as `florence2 predict` uses it, at a reduced scale; simplejpeg and pyvips where they
are installed. Beside the time stands the mean difference of the pixels from those of a full decode, in levels of 255.
From the time follow, computed and not measured, the part of an image's processor time in the engine that reading takes
(`--engine_seconds`, by default that of base with 3 beams on two cores: benchmarks/results), and the cores that read so
many images a second for a GPU. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.jpegs import make_jpeg
from benchmarks.processor import processor_name
from florence2.data.decoding.decode_image import DecodeOptions, decode_image

SIZES = {"1": (1154, 866), "12": (4000, 3000), "24": (6000, 4000)}  # by megapixels
MODEL_SIZE = (768, 768)
NUM_FILES = 4
Decoder = Callable[[Path], np.ndarray]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument(
        "--engine_seconds", type=float, default=1.70, help="processor seconds of an image in the engine"
    )
    parser.add_argument("--images_per_second", type=float, nargs="+", default=[250.0], help="of a GPU")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name, size in SIZES.items() for row in measure(name, size, Path(folder), options.num_rounds)]
    rates = " | ".join(f"cores for {rate:g} images/s" for rate in options.images_per_second)
    print(f"| megapixels | decoder | processor ms | difference | of the engine's time | {rates} |")
    print("|---" * (5 + len(options.images_per_second)) + "|")
    for row in rows:
        fraction = row["milliseconds"] / 1000 / options.engine_seconds
        cores = (f"{row['milliseconds'] / 1000 * rate:.1f}" for rate in options.images_per_second)
        cells = [row["megapixels"], row["decoder"], f"{row['milliseconds']:.1f}", f"{row['difference']:.2f}"]
        print(f"| {' | '.join([*cells, f'{fraction:.1%}', *cores])} |")
    print(json.dumps({"device": processor_name(), "options": vars(options), "rows": rows}))


def measure(name: str, size: tuple[int, int], folder: Path, num_rounds: int) -> list[dict[str, Any]]:
    """Measure every decoder on images of one size."""
    files = [Path(make_jpeg(folder, f"{name}-{number}", size, number)) for number in range(NUM_FILES)]
    known = decoders()
    times: dict[str, list[float]] = {decoder: [] for decoder in known}
    differences: dict[str, list[float]] = {decoder: [] for decoder in known}
    for number in range(num_rounds + 1):
        for file in files:
            reference = known["Pillow, full"](file).astype(float)
            for decoder, decode in known.items():
                start = time.process_time()
                pixels = decode(file)
                if number:  # the first round warms up
                    times[decoder].append(time.process_time() - start)
                    differences[decoder].append(float(np.abs(pixels - reference).mean()))
    return [
        {
            "megapixels": name,
            "decoder": decoder,
            "milliseconds": 1000 * statistics.median(times[decoder]),
            "difference": statistics.mean(differences[decoder]),
        }
        for decoder in known
    ]


def decoders() -> dict[str, Decoder]:
    """Return the decoders that are installed."""
    known: dict[str, Decoder] = {
        "Pillow, full": partial_decode(full=True),
        "Pillow, as predict": partial_decode(full=False),
    }
    if find_spec("simplejpeg"):
        known["simplejpeg"] = decode_simplejpeg
    if find_spec("pyvips"):
        known["pyvips"] = decode_pyvips
    return known


def partial_decode(*, full: bool) -> Decoder:
    """Return the decoder of `florence2 predict`, or the same with `--full_decode`."""
    options = DecodeOptions(*MODEL_SIZE, Image.Resampling.BICUBIC, full_decode=full)
    return lambda path: np.asarray(decode_image(path, options, path.name).image)


def decode_simplejpeg(path: Path) -> np.ndarray:
    """Decode at the smallest scale that is large enough, and resize with Pillow."""
    import simplejpeg  # type: ignore[import-untyped, import-not-found, unused-ignore]

    pixels = simplejpeg.decode_jpeg(path.read_bytes(), min_width=MODEL_SIZE[0], min_height=MODEL_SIZE[1], min_factor=1)
    return np.asarray(Image.fromarray(pixels).resize(MODEL_SIZE, Image.Resampling.BICUBIC))


def decode_pyvips(path: Path) -> np.ndarray:
    """Let libvips shrink on load and resize, on one thread."""
    import pyvips  # type: ignore[import-not-found]

    pyvips.cache_set_max(0)
    width, height = MODEL_SIZE
    image = pyvips.Image.thumbnail(str(path), width, height=height, size="force")
    return np.asarray(image.numpy())


if __name__ == "__main__":
    main()
