"""What a step sees: pictures in an order that a seed decides, as arrays, side by side in a batch.

Everything random here follows from (seed, epoch, sample), so workers and resumes change nothing. Knows neither the
model nor how it is trained.

Shapes: B pictures of a batch, H and W the model's picture size, S ids of the longest prompt, T of the longest target.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model import locations
from florence2.model.processing import IGNORED_LABEL, Processing
from florence2.model.tasks import NUM_BINS, find_task
from florence2.training.lessons.augment import CaptionRules, has_layout, vary

BINS = (NUM_BINS, NUM_BINS)  # a picture on which a bin is a pixel
GROUP = 50  # batches that are sorted together when pictures are grouped by length


class Draw(NamedTuple):
    """One sample at its turn: `seen` counts the samples drawn before it, from the start of the training."""

    epoch: int
    seen: int
    which: int


class Order(Sampler[Draw]):
    """Draw every sample once in an epoch, in an order that only seed and epoch decide.

    With `lengths` (one for each sample), samples of like length come together, `batch` at a time.
    """

    def __init__(self, size: int, seed: int, lengths: Sequence[int] | None = None, batch: int = 1) -> None:
        self.size = size
        self.seed = seed
        self.lengths = lengths
        self.batch = batch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Draw]:
        start = self.epoch * self.size
        for place, index in enumerate(self._indices()):
            yield Draw(self.epoch, start + place, index)

    def _indices(self) -> list[int]:
        chance = random.Random(f"order/{self.seed}/{self.epoch}")
        indices = list(range(self.size))
        chance.shuffle(indices)
        return indices if self.lengths is None else self._grouped(indices, self.lengths, chance)

    def _grouped(self, indices: list[int], lengths: Sequence[int], chance: random.Random) -> list[int]:
        many = GROUP * self.batch
        batches: list[list[int]] = []
        for start in range(0, len(indices), many):
            alike = sorted(indices[start : start + many], key=lengths.__getitem__, reverse=True)
            batches += [alike[at : at + self.batch] for at in range(0, len(alike), self.batch)]
        whole = [batch for batch in batches if len(batch) == self.batch]
        chance.shuffle(whole)
        return [index for batch in (*whole, *(b for b in batches if len(b) < self.batch)) for index in batch]


@dataclass(frozen=True, eq=False)
class Lessons(Dataset[dict[str, Any]]):
    """Samples as the arrays the model learns from.

    `max_target` counts ids, `<s>` and `</s>` included; `per_step` is how many samples one optimizer step takes, all
    processes together. `fixed` leaves chance out of the captions, for measuring. With `features` (one row
    of picture features for each sample) pictures stay closed.
    """

    samples: Sequence[Sample]
    processing: Processing
    rules: CaptionRules
    seed: int = 0
    max_prompt: int | None = None
    max_target: int | None = None
    per_step: int = 1
    fixed: bool = False
    features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, at: Draw | int) -> dict[str, Any]:
        draw = Draw(0, 0, at) if isinstance(at, int) else at
        try:
            return self._item(draw)
        except UserError as error:
            if get_worker_info() is None:
                raise
            # An error that crosses processes arrives with a traceback in its words; this one is raised over there.
            return {"problem": (error.what, error.hint)}

    def _item(self, draw: Draw) -> dict[str, Any]:
        item = {"index": draw.which, "input_ids": self._prompt(self.samples[draw.which]), "labels": self._target(draw)}
        if self.features is None:
            item["pixels_HWC"] = self.pixels(draw.which)
        else:
            item["features_ND"] = self.features[draw.which]
        return item

    def pixels(self, index: int) -> np.ndarray:
        """Read one picture at the model's size: uint8, H x W x 3."""
        picture = self.samples[index].open(at_least=self.processing.at_least)
        return self.processing.resize(picture.image)

    def caption(self, draw: Draw) -> str:
        """Give the words that are learnt at this turn."""
        sample = self.samples[draw.which]
        step = draw.seen // self.per_step
        return vary(
            sample.target or "",
            self.rules,
            seed=self.seed,
            epoch=draw.epoch,
            sample_id="/".join(sample.key),
            step=step,
            fixed=self.fixed,
        )

    def cut(self) -> int:
        """Count the captions that are longer than what is learnt of them, as they are in the first epoch."""
        if self.max_target is None:
            return 0
        draws = (Draw(0, 0, which) for which in range(len(self)))
        return sum(self.processing.target(self.caption(draw), self.max_target)[1] for draw in draws)

    def lengths(self) -> list[int]:
        """Estimate each target's length from its letters, cheaply, for grouping."""
        return [len(sample.target or "") for sample in self.samples]

    def _prompt(self, sample: Sample) -> list[int]:
        return self.processing.prompt_ids(find_task(sample.task), sample.input, self.max_prompt)

    def _target(self, draw: Draw) -> list[int]:
        text, most = self.caption(draw), self.max_target
        ids, is_cut = self.processing.target(text, most)
        if is_cut and most is not None and has_layout(text):
            return self.processing.target_ids(self._whole_objects(draw, text, most), most)
        return ids

    def _whole_objects(self, draw: Draw, text: str, most: int) -> str:
        """Leave out objects at the end, so that none is cut in the middle."""
        task = find_task(self.samples[draw.which].task)
        value, _ = locations.cut(
            task, locations.read(task, text, BINS), BINS, most, lambda words: len(self.processing.target_ids(words))
        )
        return locations.write(task, value, BINS)


@dataclass(frozen=True)
class Collator:
    """Put items side by side, padded to the longest; padding is masked in prompts and ignored in labels."""

    pad: int

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make the tensors of one batch; a problem with one item is passed on instead."""
        if problems := [item["problem"] for item in items if "problem" in item]:
            return {"problem": problems[0]}
        prompts = [item["input_ids"] for item in items]
        batch = {
            "input_ids": _padded(prompts, self.pad),
            "attention_mask": _padded([[1] * len(ids) for ids in prompts], 0),
            "labels": _padded([item["labels"] for item in items], IGNORED_LABEL),
            "index": torch.tensor([item["index"] for item in items]),
        }
        for name in ("pixels_HWC", "features_ND"):
            if name in items[0]:
                batch[name.replace("_", "_B")] = torch.from_numpy(np.stack([item[name] for item in items]))
        return batch


def preview(lessons: Lessons, number: int, epochs: int = 3) -> str:
    """Write what the first samples' targets look like over some epochs."""
    lines = []
    for which, sample in enumerate(lessons.samples[:number]):
        lines.append(f"{sample.id}: {find_task(sample.task).wording(sample.input)}")
        for epoch in range(epochs):
            draw = Draw(epoch, epoch * len(lessons) + which, which)
            lines.append(f"  epoch {epoch + 1}: {lessons.caption(draw)}")
    return "\n".join(lines)


def shift_right(labels_BT: torch.Tensor, start: int, pad: int) -> torch.Tensor:
    """Give what the decoder reads where it shall say `labels_BT`: the start, then the labels but the last."""
    shifted = torch.full_like(labels_BT, start)
    shifted[:, 1:] = labels_BT[:, :-1]
    return shifted.masked_fill(shifted == IGNORED_LABEL, pad)


def _padded(rows: Sequence[Sequence[int]], filling: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])
