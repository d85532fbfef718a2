"""Quantization of OpenVINO graphs by NNCF."""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from florence2.data.sample import Sample
from florence2.log import logger
from florence2.model.processing import Preprocessor

MAX_CALIBRATION_IMAGES = 64


def quantize_vision(graph: Any, preprocessor: Preprocessor, samples: Sequence[Sample]) -> Any:
    """Multiply in 8 bits, with ranges of activations that are measured on images.

    NNCF's preset "mixed" has symmetric weights and asymmetric activations, its model type "transformer" leaves
    attention scores and normalizations as they are.
    """
    chosen = samples[:MAX_CALIBRATION_IMAGES]
    logger.info(f"calibrating the vision tower on {len(chosen)} images")
    with _quiet_nncf() as nncf:
        return nncf.quantize(
            graph,
            nncf.Dataset(chosen, lambda sample: _pixels(sample, preprocessor)),
            subset_size=len(chosen),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
        )


def compress_weights(graph: Any) -> Any:
    """Store matrices in 8 bits; products remain in the arithmetic of their inputs."""
    with _quiet_nncf() as nncf:
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)


def _pixels(sample: Sample, preprocessor: Preprocessor) -> dict[str, np.ndarray]:
    image = sample.open(preprocessor.min_size).image
    return {"pixel_values": preprocessor.normalize(preprocessor.resize(image))[None].contiguous().numpy()}


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """Import NNCF and suppress its progress bars and its log, which go to stdout; errors are raised as ever."""
    extensions = logging.getLogger("torch.utils.cpp_extension")
    level = extensions.level
    extensions.setLevel(logging.ERROR)  # it reports that there is no CUDA
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import nncf

            logging.getLogger("nncf").setLevel(logging.ERROR)
            yield nncf
    finally:
        extensions.setLevel(level)
