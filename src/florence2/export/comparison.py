"""The comparison of an export with its model: the logits of the model's own answers to three images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from florence2.data.sample import Sample
from florence2.errors import OptionError
from florence2.export.export_source import ExportSource
from florence2.model.processing import Preprocessor
from florence2.model.tasks import find_task

NUM_IMAGES = 3
MAX_NEW_TOKENS = 32
_EMOJI = Path(__file__).parents[1] / "demo" / "emoji"
_GROUNDS = ("white", "black", "orange")


@dataclass(frozen=True)
class ComparisonCase:
    """An image, a prompt and an answer as tensors of batch size 1, and the logits that the model assigns to it.

    `pixel_values` is 1CHW in float32. `input_ids` holds the image tokens and the prompt, `decoder_input_ids` the
    answer with its start token.
    """

    image: str
    pixel_values: Tensor
    input_ids: Tensor
    decoder_input_ids: Tensor
    logits: Tensor


LogitsFn = Callable[[ComparisonCase], Tensor]


@dataclass(frozen=True)
class LogitsComparison:
    """How far the logits of an export are from those of its model."""

    max_difference: float
    num_equal_tokens: int
    num_tokens: int
    num_images: int

    def __str__(self) -> str:
        equal = f"{self.num_equal_tokens} of {self.num_tokens} tokens equal"
        return f"largest difference of logits {self.max_difference:.2g} on {self.num_images} images, {equal}"


def make_cases(source: ExportSource, samples: Sequence[Sample] = ()) -> list[ComparisonCase]:
    """Let a model answer samples, by default three images of this package with the task it was trained on."""
    preprocessor = Preprocessor.from_processor(source.processor)
    return [_make_case(source.model, preprocessor, each) for each in samples or _bundled_samples(source)]


@torch.inference_mode()
def _make_case(model: Any, preprocessor: Preprocessor, sample: Sample) -> ComparisonCase:
    pixels_HWC = preprocessor.resize(sample.open().image)
    inputs = {
        "pixel_values": preprocessor.normalize(pixels_HWC)[None].contiguous(),
        "input_ids": torch.tensor([preprocessor.prompt_ids(find_task(sample.task), sample.input)]),
    }
    answer = model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)[:, :-1]
    logits = model(**inputs, decoder_input_ids=answer).logits
    return ComparisonCase(sample.id, **inputs, decoder_input_ids=answer, logits=logits)


def compare(cases: Sequence[ComparisonCase], export_logits: LogitsFn, vocab_size: int) -> LogitsComparison:
    """Compare the first `vocab_size` logits of an export and its model; raise OptionError if they are not finite."""
    difference, num_equal, num_tokens = 0.0, 0, 0
    for case in cases:
        logits = export_logits(case).float()
        if not torch.isfinite(logits).all():
            raise OptionError(f"the logits of the export are not finite for `{case.image}`", "pass `--dtype float32`")
        found, expected = logits[..., :vocab_size], case.logits[..., :vocab_size]
        difference = max(difference, float((found - expected).abs().max()))
        num_equal += int((found.argmax(-1) == expected.argmax(-1)).sum())
        num_tokens += found.shape[1]
    return LogitsComparison(difference, num_equal, num_tokens, len(cases))


def _bundled_samples(source: ExportSource) -> list[Sample]:
    """Return three colored grounds with emoji on them."""
    task = source.task.token
    boxes = [row["box"] for row in json.loads((_EMOJI / "names.json").read_text(encoding="utf-8"))]
    samples = []
    with Image.open(_EMOJI / "sheet.png") as sheet:
        for number, ground in enumerate(_GROUNDS):
            image = Image.new("RGB", (320, 240), ground)
            for column in range(2):
                emoji = sheet.convert("RGBA").crop(boxes[number * 2 + column]).resize((96, 96))
                image.paste(emoji, (24 + 160 * column, 60 + 40 * column), emoji)
            samples.append(Sample(f"bundled image {number + 1}", image, task))
    return samples
