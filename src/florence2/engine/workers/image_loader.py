"""The images of samples as the encoder takes them: decoded by threads or by processes, and resized."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from florence2.data.decoding.decode_image import DecodeOptions, decode_image
from florence2.data.decoding.decoder_messages import DecodedImage
from florence2.data.decoding.image_decoders import ImageDecoders
from florence2.data.sample import OpenedImage, Sample, Size
from florence2.engine.engine_config import EngineConfig
from florence2.engine.workers.image_threads import ImageThreads
from florence2.model.processing import Preprocessor

SOURCE_SECONDS = 5.0  # a thread that waits for a process gets its error, unless the source itself hangs


@dataclass(eq=False)
class ImageInputs:
    """A preprocessed image: uint8 pixels of the model's size, and its features once they are computed."""

    pixels_HWC: torch.Tensor
    size: Size
    features_ND: torch.Tensor | None = None


class ImageLoader:
    """Decodes and resizes the images of samples; `close()` ends its processes.

    Files and encoded bytes are decoded where `EngineConfig.image_workers` says, images that a program has opened by
    threads. A JPEG is decoded at a reduced scale, unless the config says otherwise.
    """

    def __init__(self, preprocessor: Preprocessor, config: EngineConfig, *, pin_memory: bool = False) -> None:
        """Take what is the same for all images; `pin_memory` puts pixels where a GPU reads them without the host."""
        self.num_workers, self._pin_memory = max(1, config.num_workers), pin_memory
        height, width = preprocessor.size
        self._options = DecodeOptions(
            width, height, preprocessor.resample.value, config.full_decode, timeout=config.image_timeout
        )
        self._decoders = ImageDecoders(config.image_memory) if config.image_workers == "processes" else None

    def threads(self) -> ImageThreads[ImageInputs]:
        """Start the threads of a run."""
        timeout, clock_timeout = self._options.timeout, self._options.clock_timeout
        if self._decoders:
            timeout = clock_timeout = clock_timeout + SOURCE_SECONDS
        return ImageThreads(self.load, self.num_workers, timeout=timeout, clock_timeout=clock_timeout)

    def load(self, sample: Sample) -> ImageInputs:
        """Decode and resize the image of a sample."""
        decoded = self._decode(sample, self._options)
        pixels_HWC = torch.from_numpy(decoded.pixels_HWC)
        return ImageInputs(pixels_HWC.pin_memory() if self._pin_memory else pixels_HWC, decoded.size)

    def open(
        self, sample: Sample, formats: tuple[str, ...], max_pixels: int | None, timeout: float | None
    ) -> OpenedImage:
        """Decode and resize the image of a sample within limits of its own."""
        seconds = timeout or self._options.timeout
        decoded = self._decode(sample, replace(self._options, formats=formats, max_pixels=max_pixels, timeout=seconds))
        return OpenedImage(Image.fromarray(decoded.pixels_HWC), decoded.size)

    def close(self) -> None:
        """End the processes."""
        if self._decoders is not None:
            self._decoders.close()

    def _decode(self, sample: Sample, options: DecodeOptions) -> DecodedImage:
        source = sample.source()
        if self._decoders is None or isinstance(source, Image.Image | OpenedImage):
            opened = decode_image(source, options, sample.name)
            return DecodedImage(np.array(opened.image), opened.size)
        return self._decoders.decode(source, options, sample.name)
