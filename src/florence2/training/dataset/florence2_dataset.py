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
from florence2.model.processing import IGNORED_LABEL, Processing
from florence2.model.tasks import find_task
from florence2.training.dataset.box_transforms import BINS, View
from florence2.training.dataset.caption_augmentation import CaptionRules, has_layout, vary
from florence2.training.dataset.image_augmentation import ViewRules, seen, turned
from florence2.training.dataset.sampler import Draw, Order, drawn


class Features(Protocol):
    """Picture features of samples."""

    def __getitem__(self, at: int, /) -> np.ndarray:
        """Give those of a sample: (N, D)."""


@dataclass(frozen=True, eq=False)
class Lessons(Dataset[dict[str, Any]]):
    """Samples as the arrays the model learns from.

    `max_target` counts ids, `<s>` and `</s>` included; `per_step` is how many samples one optimizer step takes, all
    processes together. `weights` say how often each sample is drawn in an epoch. `fixed` leaves chance out, for
    measuring. With `features` (those of each sample's picture, N x D) pictures stay closed.
    """

    samples: Sequence[Sample]
    processing: Processing
    rules: CaptionRules
    views: ViewRules = field(default_factory=ViewRules)
    weights: Sequence[float] | None = None
    seed: int = 0
    max_prompt: int | None = None
    max_target: int | None = None
    per_step: int = 1
    fixed: bool = False
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def drawn(self) -> int:
        """Count the samples of an epoch."""
        return len(self) if self.weights is None else drawn(self.weights)

    def order(self, seed: int, batch: int, grouped: bool) -> Order:
        """Give the order that samples are drawn in, those with answers of like length together if `grouped`."""
        lengths = [len(sample.target or "") for sample in self.samples] if grouped else None
        return Order(len(self), seed, lengths, batch, self.weights)

    def __getitem__(self, at: Draw | int) -> dict[str, Any]:
        draw = Draw(0, 0, at) if isinstance(at, int) else at
        try:
            return self.arrays(self.samples[draw.which], draw)
        except UserError as error:
            if get_worker_info() is None:
                raise
            # An error that crosses processes arrives with a traceback in its words; this one is raised over there.
            return {"problem": (error.what, error.hint)}

    def arrays(self, sample: Sample, draw: Draw) -> dict[str, Any]:
        """Give the arrays of a sample at its turn."""
        asked, view = self.turn(sample, draw)
        item = {"index": draw.which, "input_ids": self._prompt(asked), "labels": self._target(asked)}
        if self.features is None:
            item["pixels_HWC"] = self._pixels(sample, view)
        else:
            item["features_ND"] = self.features[draw.which]
        return item

    def turn(self, sample: Sample, draw: Draw) -> tuple[Sample, View]:
        """Give a sample in the words of its turn, and what is seen of its picture."""
        name, view = "/".join(sample.key), View()
        at = f"{draw.epoch}/{name}" + (f"/{draw.again}" if draw.again else "")
        if not (self.fixed or self.views.idle):
            sample, view = turned(sample, self.views, random.Random(f"view/{self.seed}/{at}"))
        text = vary(
            sample.target or "",
            self.rules,
            seed=self.seed,
            epoch=draw.epoch,
            sample_id=f"{name}/{draw.again}" if draw.again else name,
            step=draw.seen // self.per_step,
            fixed=self.fixed,
        )
        return replace(sample, target=text), view

    def as_seen(self, sample: Sample, draw: Draw) -> Sample:
        """Give a sample as the model sees it at its turn: its words, and its picture at the model's size."""
        turn, view = self.turn(sample, draw)
        return replace(turn, picture=Image.fromarray(self._pixels(sample, view)))

    def pixels(self, index: int) -> np.ndarray:
        """Read one picture, whole, at the model's size: uint8, H x W x 3."""
        return self._pixels(self.samples[index], View())

    def _pixels(self, sample: Sample, view: View) -> np.ndarray:
        if not view.changes:
            return self.processing.resize(sample.open(at_least=self.processing.at_least).image)
        width, height = self.processing.at_least
        enough = (round(width / (view.right - view.left)), round(height / (view.bottom - view.top)))
        image, box = seen(sample.open(at_least=enough).image, view, self.processing.ground)
        pixels = self.processing.resize(image, box)
        return np.ascontiguousarray(pixels[:, ::-1]) if view.mirrored else pixels

    def usual_prompt(self, of: int = 64) -> int | None:
        """Give the length that most prompts of the first samples have, in ids."""
        lengths = Counter(len(self._prompt(sample)) for sample in self.samples[:of])
        return lengths.most_common(1)[0][0] if lengths else None

    def cut(self) -> int:
        """Count the captions that are longer than what is learnt of them, as they are in the first epoch."""
        if self.max_target is None:
            return 0
        turns = (self.turn(sample, Draw(0, 0, which))[0] for which, sample in enumerate(self.samples))
        return sum(self.processing.target(turn.target or "", self.max_target)[1] for turn in turns)

    def _prompt(self, sample: Sample) -> list[int]:
        return self.processing.prompt_ids(find_task(sample.task), sample.input, self.max_prompt)

    def _target(self, sample: Sample) -> list[int]:
        text, most = sample.target or "", self.max_target
        ids, is_cut = self.processing.target(text, most)
        if is_cut and most is not None and has_layout(text):
            return self.processing.target_ids(self._whole_objects(sample, text, most), most)
        return ids

    def _whole_objects(self, sample: Sample, text: str, most: int) -> str:
        """Leave out objects at the end, so that none is cut in the middle."""
        task = find_task(sample.task)
        value, _ = locations.cut(
            task, locations.read(task, text, BINS), BINS, most, lambda words: len(self.processing.target_ids(words))
        )
        return locations.write(task, value, BINS)


@dataclass(frozen=True)
class Collator:
    """Put items side by side, padded to the longest; padding is masked in prompts and ignored in labels.

    Where prompts are of one length there is no mask. `learnt_N` are the places of the labels (B x T, flat) that are
    learnt. With `pad_to` batches of few shapes come: lengths are multiples of it, but for that of `usual` prompts, and
    the places that are missing to one of eight numbers of them are -1.
    """

    pad: int
    pad_to: int = 1
    usual: int | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make the tensors of one batch; a problem with one item is passed on instead."""
        if problems := [item["problem"] for item in items if "problem" in item]:
            return {"problem": problems[0]}
        prompts = [item["input_ids"] for item in items]
        lengths = {len(ids) for ids in prompts}
        multiple = 1 if lengths == {self.usual} else self.pad_to
        batch = {
            "input_ids": _padded(prompts, self.pad, multiple),
            "labels": _padded([item["labels"] for item in items], IGNORED_LABEL, self.pad_to),
            "index": torch.tensor([item["index"] for item in items]),
        }
        if lengths != {batch["input_ids"].shape[1]}:
            batch["attention_mask"] = _padded([[1] * len(ids) for ids in prompts], 0, multiple)
        batch["learnt_N"] = self._learnt(batch["labels"])
        for name in ("pixels_HWC", "features_ND"):
            if name in items[0]:
                batch[name.replace("_", "_B")] = torch.from_numpy(np.stack([item[name] for item in items]))
        return batch

    def _learnt(self, labels_BT: torch.Tensor) -> torch.Tensor:
        places_N = (labels_BT.flatten() != IGNORED_LABEL).nonzero().squeeze(1)
        few = 1 if self.pad_to == 1 else max(labels_BT.numel() // 8, 1)
        return functional.pad(places_N, (0, -len(places_N) % few), value=-1)


def turns(lessons: Lessons, number: int, epochs: int = 3) -> Iterator[tuple[Sample, Draw]]:
    """Give the first samples at their turns in some epochs."""
    for which, sample in enumerate(lessons.samples[:number]):
        for epoch in range(epochs):
            yield sample, Draw(epoch, epoch * lessons.drawn + which, which)


def preview(lessons: Lessons, number: int, epochs: int = 3) -> str:
    """Write what the first samples' targets look like over some epochs, and what is seen of their pictures."""
    lines = []
    for sample, draw in turns(lessons, number, epochs):
        turn, view = lessons.turn(sample, draw)
        if draw.epoch == 0:
            lines.append(f"{sample.id}: {find_task(sample.task).wording(sample.input)}")
        asked = f" {find_task(turn.task).wording(turn.input)}" if turn.input != sample.input else ""
        lines.append(f"  epoch {draw.epoch + 1}{f' ({view})' if view.changes else ''}:{asked} {turn.target}")
    return "\n".join(lines)


def shift_right(labels_BT: torch.Tensor, start: int, pad: int) -> torch.Tensor:
    """Give what the decoder reads where it shall say `labels_BT`: the start, then the labels but the last."""
    shifted = torch.full_like(labels_BT, start)
    shifted[:, 1:] = labels_BT[:, :-1]
    return shifted.masked_fill(shifted == IGNORED_LABEL, pad)


def _padded(rows: Sequence[Sequence[int]], filling: int, multiple: int) -> torch.Tensor:
    longest = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])
