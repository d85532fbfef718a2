"""What a step sees: pictures and words at their turn, as arrays, side by side in a batch.

Everything random here follows from (seed, epoch, sample), so workers and resumes change nothing. Knows neither the
model nor how it is trained.

Shapes: B pictures of a batch, H and W the model's picture size, S ids of the longest prompt, T of the longest target.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import Dataset, get_worker_info

from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model import locations
from florence2.model.processing import IGNORED_LABEL, Preprocessor
from florence2.model.tasks import OutputType, find_task
from florence2.training.dataset.box_transforms import BINS, CropWindow
from florence2.training.dataset.caption_augmentation import CaptionAugmentation, augment_caption, has_special_tokens
from florence2.training.dataset.image_augmentation import ImageAugmentation, augment_sample, crop_image
from florence2.training.dataset.sampler import SampleDraw, WeightedSampler, num_draws


class FeatureSource(Protocol):
    """Picture features of samples."""

    def __getitem__(self, at: int, /) -> np.ndarray:
        """Give those of a sample: (N, D)."""


@dataclass(frozen=True, eq=False)
class Florence2Dataset(Dataset[dict[str, Any]]):
    """Samples as the arrays the model learns from.

    `max_target` counts ids, `<s>` and `</s>` included; `per_step` is how many samples one optimizer step takes, all
    processes together. `weights` say how often each sample is drawn in an epoch. `fixed` leaves chance out, for
    measuring. With `features` (those of each sample's picture, N x D) pictures stay closed.
    """

    samples: Sequence[Sample]
    preprocessor: Preprocessor
    caption_augmentation: CaptionAugmentation = field(default_factory=CaptionAugmentation)
    image_augmentation: ImageAugmentation = field(default_factory=ImageAugmentation)
    weights: Sequence[float] | None = None
    seed: int = 0
    max_prompt_length: int | None = None
    max_target_length: int | None = None
    samples_per_step: int = 1
    fixed: bool = False
    features: FeatureSource | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def samples_per_epoch(self) -> int:
        """Count the samples of an epoch."""
        return len(self) if self.weights is None else num_draws(self.weights)

    def sampler(self, seed: int, batch: int, grouped: bool) -> WeightedSampler:
        """Give the order that samples are drawn in, those with answers of like length together if `grouped`."""
        lengths = [len(sample.target or "") for sample in self.samples] if grouped else None
        return WeightedSampler(len(self), seed, lengths, batch, self.weights)

    def __getitem__(self, at: SampleDraw | int) -> dict[str, Any]:
        draw = SampleDraw(0, 0, at) if isinstance(at, int) else at
        try:
            return self.example(self.samples[draw.sample_index], draw)
        except UserError as error:
            if get_worker_info() is None:
                raise
            # An error that crosses processes arrives with a traceback in its words; this one is raised over there.
            return {"problem": (error.what, error.hint)}

    def example(self, sample: Sample, draw: SampleDraw) -> dict[str, Any]:
        """Give the arrays of a sample at its turn."""
        asked, view = self.augmented(sample, draw)
        item = {"index": draw.sample_index, "input_ids": self._prompt(asked), "labels": self._target(asked)}
        if self.features is None:
            item["pixels_HWC"] = self._pixels(sample, view)
        else:
            item["features_ND"] = self.features[draw.sample_index]
        return item

    def augmented(self, sample: Sample, draw: SampleDraw) -> tuple[Sample, CropWindow]:
        """Give a sample in the words of its turn, and what is seen of its picture."""
        name, view = "/".join(sample.key), CropWindow()
        at = f"{draw.epoch}/{name}" + (f"/{draw.repeat}" if draw.repeat else "")
        if not (self.fixed or self.image_augmentation.is_noop):
            sample, view = augment_sample(sample, self.image_augmentation, random.Random(f"view/{self.seed}/{at}"))
        text = augment_caption(
            sample.target or "",
            self.caption_augmentation,
            seed=self.seed,
            epoch=draw.epoch,
            sample_id=f"{name}/{draw.repeat}" if draw.repeat else name,
            step=draw.global_index // self.samples_per_step,
            fixed=self.fixed,
        )
        return replace(sample, target=text), view

    def rendered_example(self, sample: Sample, draw: SampleDraw) -> Sample:
        """Give a sample as the model sees it at its turn: its words, and its picture at the model's size."""
        turn, view = self.augmented(sample, draw)
        return replace(turn, image=Image.fromarray(self._pixels(sample, view)))

    def pixels(self, index: int) -> np.ndarray:
        """Read one picture, whole, at the model's size: uint8, H x W x 3."""
        return self._pixels(self.samples[index], CropWindow())

    def _pixels(self, sample: Sample, view: CropWindow) -> np.ndarray:
        if not view.is_changed:
            return self.preprocessor.resize(sample.open(min_size=self.preprocessor.min_size).image)
        width, height = self.preprocessor.min_size
        enough = (round(width / (view.right - view.left)), round(height / (view.bottom - view.top)))
        image, box = crop_image(sample.open(min_size=enough).image, view, self.preprocessor.fill_color)
        pixels = self.preprocessor.resize(image, box)
        return np.ascontiguousarray(pixels[:, ::-1]) if view.flipped else pixels

    def common_prompt_length(self, of: int = 64) -> int | None:
        """Give the length that most prompts of the first samples have, in ids."""
        lengths = Counter(len(self._prompt(sample)) for sample in self.samples[:of])
        return lengths.most_common(1)[0][0] if lengths else None

    def num_truncated(self) -> int:
        """Count the captions that are longer than what is learnt of them, as they are in the first epoch."""
        if self.max_target_length is None:
            return 0
        turns = (self.augmented(sample, SampleDraw(0, 0, which))[0] for which, sample in enumerate(self.samples))
        return sum(self.preprocessor.encode_target(turn.target or "", self.max_target_length)[1] for turn in turns)

    def _prompt(self, sample: Sample) -> list[int]:
        return self.preprocessor.prompt_ids(find_task(sample.task), sample.input, self.max_prompt_length)

    def _target(self, sample: Sample) -> list[int]:
        text, most = sample.target or "", self.max_target_length
        ids, is_cut = self.preprocessor.encode_target(text, most)
        if is_cut and most is not None and has_special_tokens(text):
            return self.preprocessor.target_ids(self._whole_objects(sample, text, most), most)
        return ids

    def _whole_objects(self, sample: Sample, text: str, most: int) -> str:
        """Leave out objects at the end, so that none is cut in the middle."""
        task = find_task(sample.task)
        if task.output_type is OutputType.TEXT:
            return locations.clean_text(text)
        value, _ = locations.truncate(
            task, locations.decode(task, text, BINS), BINS, most, lambda words: len(self.preprocessor.target_ids(words))
        )
        return locations.encode(task, value, BINS)


@dataclass(frozen=True)
class Florence2Collator:
    """Put items side by side, padded to the longest; padding is masked in prompts and ignored in labels.

    Where prompts are of one length there is no mask. `learnt_N` are the places of the labels (B x T, flat) that are
    learnt. With `pad_to` batches of few shapes come: lengths are multiples of it, but for that of `usual` prompts, and
    the places that are missing to one of eight numbers of them are -1.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1
    common_prompt_length: int | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make the tensors of one batch; a problem with one item is passed on instead."""
        if problems := [item["problem"] for item in items if "problem" in item]:
            return {"problem": problems[0]}
        prompts = [item["input_ids"] for item in items]
        lengths = {len(ids) for ids in prompts}
        multiple = 1 if lengths == {self.common_prompt_length} else self.pad_to_multiple_of
        batch = {
            "input_ids": _padded(prompts, self.pad_token_id, multiple),
            "labels": _padded([item["labels"] for item in items], IGNORED_LABEL, self.pad_to_multiple_of),
            "index": torch.tensor([item["index"] for item in items]),
        }
        if lengths != {batch["input_ids"].shape[1]}:
            batch["attention_mask"] = _padded([[1] * len(ids) for ids in prompts], 0, multiple)
        batch["learnt_N"] = self._label_positions(batch["labels"])
        for name in ("pixels_HWC", "features_ND"):
            if name in items[0]:
                batch[name.replace("_", "_B")] = torch.from_numpy(np.stack([item[name] for item in items]))
        return batch

    def _label_positions(self, labels_BT: torch.Tensor) -> torch.Tensor:
        places_N = (labels_BT.flatten() != IGNORED_LABEL).nonzero().squeeze(1)
        few = 1 if self.pad_to_multiple_of == 1 else max(labels_BT.numel() // 8, 1)
        return functional.pad(places_N, (0, -len(places_N) % few), value=-1)


def preview_examples(dataset: Florence2Dataset, number: int, epochs: int = 3) -> Iterator[tuple[Sample, SampleDraw]]:
    """Give the first samples at their turns in some epochs."""
    for which, sample in enumerate(dataset.samples[:number]):
        for epoch in range(epochs):
            yield sample, SampleDraw(epoch, epoch * dataset.samples_per_epoch + which, which)


def preview_text(dataset: Florence2Dataset, number: int, epochs: int = 3) -> str:
    """Write what the first samples' targets look like over some epochs, and what is seen of their pictures."""
    lines = []
    for sample, draw in preview_examples(dataset, number, epochs):
        turn, view = dataset.augmented(sample, draw)
        if draw.epoch == 0:
            lines.append(f"{sample.id}: {find_task(sample.task).format_prompt(sample.input)}")
        asked = f" {find_task(turn.task).format_prompt(turn.input)}" if turn.input != sample.input else ""
        lines.append(f"  epoch {draw.epoch + 1}{f' ({view})' if view.is_changed else ''}:{asked} {turn.target}")
    return "\n".join(lines)


def shift_right(labels_BT: torch.Tensor, start: int, pad: int) -> torch.Tensor:
    """Give what the decoder reads where it shall say `labels_BT`: the start, then the labels but the last."""
    shifted = torch.full_like(labels_BT, start)
    shifted[:, 1:] = labels_BT[:, :-1]
    return shifted.masked_fill(shifted == IGNORED_LABEL, pad)


def _padded(rows: Sequence[Sequence[int]], filling: int, multiple: int) -> torch.Tensor:
    longest = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])
