"""The samples of listed images, each made when it is read."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, starmap
from typing import overload

from florence2.data.listed.listed_images import ListedImages
from florence2.data.sample import Sample, SampleKey


@dataclass(frozen=True)
class SampleStep:
    """What the samples of all images have in common: the task and its input; `complete` adds to each sample."""

    task: str
    input: str = ""
    complete: Callable[[Sample], Sample] | None = None


class ListedSamples(Sequence[Sample]):
    """One sample for each image and step, those of one image in a row."""

    def __init__(self, images: ListedImages, steps: Sequence[SampleStep]) -> None:
        self.images, self.steps = images, tuple(steps)

    @classmethod
    def of_step(cls, images: ListedImages, task: str, task_input: str) -> "ListedSamples":
        """Return one sample for each image."""
        return cls(images, (SampleStep(task, task_input),))

    def __len__(self) -> int:
        return len(self.images) * len(self.steps)

    def __iter__(self) -> Iterator[Sample]:
        return starmap(self._make, self._entries())

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        image, step = divmod(range(len(self))[index], len(self.steps))
        return self._make(self.images[image], self.steps[step])

    def sample_of(self, image_id: str) -> Sample:
        """Return the first sample of an image."""
        return self._make(image_id, self.steps[0])

    def keys(self) -> Iterator[SampleKey]:
        """Yield the keys of the samples without making them."""
        return (SampleKey(image_id, step.task, step.input) for image_id, step in self._entries())

    def select(self, mask: Iterable[int]) -> Iterator[Sample]:
        """Yield the samples whose value in a mask is not 0."""
        return starmap(self._make, compress(self._entries(), mask))

    def _entries(self) -> Iterator[tuple[str, SampleStep]]:
        return ((image_id, step) for image_id in self.images for step in self.steps)

    def _make(self, image_id: str, step: SampleStep) -> Sample:
        sample = Sample(image_id, self.images.path(image_id), step.task, step.input)
        return step.complete(sample) if step.complete else sample


def sample_keys(samples: Sequence[Sample]) -> Iterator[SampleKey]:
    """Yield the keys of samples."""
    return samples.keys() if isinstance(samples, ListedSamples) else (sample.key for sample in samples)


def select_samples(samples: Sequence[Sample], mask: Iterable[int]) -> Iterator[Sample]:
    """Yield the samples whose value in a mask is not 0."""
    return samples.select(mask) if isinstance(samples, ListedSamples) else compress(samples, mask)
