"""The training dataset: samples, augmented and converted to the arrays that the collator batches.

Augmentation follows from the seed, the epoch and the sample, so neither the number of workers nor a resume changes it.

Shapes: H and W are the model's image size, N is the number of image tokens, D is the hidden size.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, get_worker_info

from florence2.data.image import ImageError
from florence2.data.sample import Sample
from florence2.errors import DatasetError, UserError
from florence2.log import count_noun, logger
from florence2.model import locations
from florence2.model.processing import Preprocessor
from florence2.model.tasks import OutputType, find_task
from florence2.training.dataset.box_transforms import BIN_GRID, CropWindow
from florence2.training.dataset.caption_augmentation import CaptionAugmentation, augment_caption, has_special_tokens
from florence2.training.dataset.image_augmentation import ImageAugmentation, augment_sample, crop_image
from florence2.training.dataset.sampler import SampleDraw, WeightedSampler, num_draws

MAX_UNREADABLE_IN_A_ROW = 100
NUM_LOGGED_UNREADABLE = 10


class UnreadableImages:
    """The images that turned out unreadable during the training, and were replaced: named in the log, and counted."""

    def __init__(self) -> None:
        self._errors: dict[str, None] = {}

    def add(self, errors: Sequence[str]) -> None:
        """Count images by their errors, and log the first ones."""
        for error in errors:
            if error not in self._errors:
                self._errors[error] = None
                if len(self._errors) <= NUM_LOGGED_UNREADABLE:
                    logger.warning(f"{error}; the next sample of the dataset replaces it")

    def log_summary(self) -> None:
        """Log how many images were replaced, if any."""
        if self._errors:
            counted = count_noun(len(self._errors), "image")
            logger.warning(
                f"{counted} could not be read; the next samples replaced them. The first: {next(iter(self._errors))}"
            )


def raise_lost_worker(error: RuntimeError) -> None:
    """Raise a DatasetError where torch reports that a process that loads images has died, as by a decoder's crash."""
    reason = " ".join(str(error).split())
    if "DataLoader worker" in reason:
        hint = "`florence2 predict --model_path demo --input_path DATASET` names an image that crashes its decoder"
        raise DatasetError(f"a process that loads images has died: {reason}", hint) from error


class FeatureSource(Protocol):
    """Image features by the index of a sample."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Return the features of a sample's image: (N, D)."""


@dataclass(frozen=True, eq=False)
class Florence2Dataset(Dataset[dict[str, Any]]):
    """A map-style dataset of samples as the arrays that the model is trained on.

    An index is an integer, for the sample in its first epoch, or a `SampleDraw` of `sampler`.

    `weights` holds the number of times an epoch draws each sample. `max_prompt_length` and `max_target_length` count
    tokens, `<s>` and `</s>` included; longer targets are truncated, longer prompts are an error. `samples_per_step`
    counts the samples of an optimizer step in all processes together, and times the token warmup. With `augment=False`
    nothing random is applied, as evaluation requires. With `features`, images are not opened.
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
    augment: bool = True
    features: FeatureSource | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def samples_per_epoch(self) -> int:
        """Count the samples that an epoch draws."""
        return len(self) if self.weights is None else num_draws(self.weights)

    def sampler(self, seed: int, batch_size: int = 1, group_by_length: bool = False) -> WeightedSampler:
        """Make the sampler of this dataset; `group_by_length` puts targets of similar length into one batch."""
        lengths = [len(sample.target or "") for sample in self.samples] if group_by_length else None
        return WeightedSampler(len(self), seed, lengths, batch_size, self.weights)

    def __getitem__(self, index: SampleDraw | int) -> dict[str, Any]:
        draw = SampleDraw(0, 0, index) if isinstance(index, int) else index
        try:
            return self._readable_example(draw)
        except UserError as error:
            if get_worker_info() is None:
                raise
            # torch puts the worker's traceback into the message of an error; the main process raises this one instead.
            return {"error": (error.what, error.hint)}

    def _readable_example(self, draw: SampleDraw) -> dict[str, Any]:
        """Return the example of a draw; an unreadable image is replaced by the next readable one of the dataset.

        So a batch keeps its size, and a resumed run, with the same files, has the same examples.
        """
        unreadable: list[str] = []
        for index in range(draw.sample_index, draw.sample_index + min(len(self), MAX_UNREADABLE_IN_A_ROW)):
            current = draw._replace(sample_index=index % len(self))
            try:
                example = self.example(self.samples[current.sample_index], current)
            except ImageError as error:
                unreadable.append(error.what)
            else:
                return example | {"unreadable": unreadable} if unreadable else example
        what = f"{count_noun(len(unreadable), 'image')} in a row cannot be read, the first: {unreadable[0]}"
        raise DatasetError(what, "check that the disk of the dataset is connected")

    def example(self, sample: Sample, draw: SampleDraw) -> dict[str, Any]:
        """Return the arrays of one augmented sample."""
        augmented, window = self.augmented(sample, draw)
        example: dict[str, Any] = {"input_ids": self._prompt_ids(augmented), "labels": self._target_ids(augmented)}
        if self.features is None:
            example["pixels_HWC"] = self._pixels(sample, window)
        else:
            example["features_ND"] = self.features[draw.sample_index]
        return example

    def augmented(self, sample: Sample, draw: SampleDraw) -> tuple[Sample, CropWindow]:
        """Return a sample with its augmented prompt and target, and the window of its image."""
        name, window = "/".join(sample.key), CropWindow()
        key = f"{name}/{draw.repeat}" if draw.repeat else name
        if self.augment and not self.image_augmentation.is_noop:
            rng = _random_stream(f"view/{self.seed}/{draw.epoch}/{key}")
            sample, window = augment_sample(sample, self.image_augmentation, rng)
        target = augment_caption(
            sample.target or "",
            self.caption_augmentation,
            _random_stream(f"{self.seed}/{draw.epoch}/{key}"),
            epoch=draw.epoch,
            step=draw.global_index // self.samples_per_step,
            augment=self.augment,
        )
        return replace(sample, target=target), window

    def rendered_example(self, sample: Sample, draw: SampleDraw) -> Sample:
        """Return an augmented sample with its image at the model's size, for a preview."""
        augmented, window = self.augmented(sample, draw)
        return replace(augmented, image=Image.fromarray(self._pixels(sample, window)))

    def pixels(self, index: int) -> np.ndarray:
        """Read the full image of a sample at the model's size: uint8, (H, W, 3)."""
        return self._pixels(self.samples[index], CropWindow())

    def common_prompt_length(self, num_samples: int = 64) -> int | None:
        """Return the most common length, in tokens, of the prompts of the first samples."""
        lengths = Counter(len(self._prompt_ids(sample)) for sample in self.samples[:num_samples])
        return lengths.most_common(1)[0][0] if lengths else None

    def num_truncated(self) -> int:
        """Count the targets that are longer than `max_target_length` in the first epoch."""
        if self.max_target_length is None:
            return 0
        augmented = (self.augmented(sample, SampleDraw(0, 0, i))[0] for i, sample in enumerate(self.samples))
        return sum(self._encode_target(sample)[1] for sample in augmented)

    def _pixels(self, sample: Sample, window: CropWindow) -> np.ndarray:
        if window.is_identity:
            return self.preprocessor.resize(sample.open(min_size=self.preprocessor.min_size).image)
        width, height = self.preprocessor.min_size
        min_size = (round(width / (window.right - window.left)), round(height / (window.bottom - window.top)))
        image, box = crop_image(sample.open(min_size=min_size).image, window, self.preprocessor.fill_color)
        pixels_HWC = self.preprocessor.resize(image, box)
        return np.ascontiguousarray(pixels_HWC[:, ::-1]) if window.is_flipped else pixels_HWC

    def _prompt_ids(self, sample: Sample) -> list[int]:
        return self.preprocessor.prompt_ids(find_task(sample.task), sample.input, self.max_prompt_length)

    def _target_ids(self, sample: Sample) -> list[int]:
        text, max_length = sample.target or "", self.max_target_length
        ids, is_truncated = self._encode_target(sample)
        is_literal = find_task(sample.task).has_literal_target
        if is_truncated and not is_literal and max_length is not None and has_special_tokens(text):
            return self.preprocessor.target_ids(self._truncate_objects(sample.task, text, max_length), max_length)
        return ids

    def _encode_target(self, sample: Sample) -> tuple[list[int], bool]:
        is_literal = find_task(sample.task).has_literal_target
        return self.preprocessor.encode_target(sample.target or "", self.max_target_length, literal=is_literal)

    def _truncate_objects(self, task_name: str, text: str, max_length: int) -> str:
        """Remove objects from the end of a target until it fits into `max_length` tokens."""
        task = find_task(task_name)
        if task.output_type is OutputType.TEXT:
            return locations.clean_text(text)
        answer, _ = locations.truncate(
            task,
            locations.decode(task, text, BIN_GRID),
            BIN_GRID,
            max_length,
            lambda target: len(self.preprocessor.target_ids(target)),
        )
        return locations.encode(task, answer, BIN_GRID)


def preview_examples(
    dataset: Florence2Dataset, num_samples: int, num_epochs: int = 3
) -> Iterator[tuple[Sample, SampleDraw]]:
    """Yield the first samples, each with its draws in the first epochs."""
    for index, sample in enumerate(dataset.samples[:num_samples]):
        for epoch in range(num_epochs):
            yield sample, SampleDraw(epoch, epoch * dataset.samples_per_epoch + index, index)


def preview_lines(dataset: Florence2Dataset, num_samples: int, num_epochs: int = 3) -> Iterator[str]:
    """Yield lines: the augmented targets, and the windows of the images, of the first samples in the first epochs."""
    for sample, draw in preview_examples(dataset, num_samples, num_epochs):
        augmented, window = dataset.augmented(sample, draw)
        if draw.epoch == 0:
            yield f"{sample.id}: {find_task(sample.task).format_prompt(sample.input)}"
        prompt = find_task(augmented.task).format_prompt(augmented.input)
        change = "" if window.is_identity else f" ({window})"
        new_prompt = f" {prompt}" if augmented.input != sample.input else ""
        yield f"  epoch {draw.epoch + 1}{change}:{new_prompt} {augmented.target}"


def _random_stream(name: str) -> random.Random:
    """Return `Random(name)`; a name may contain a file name that is not UTF-8."""
    return random.Random(name.encode(errors="surrogateescape"))
