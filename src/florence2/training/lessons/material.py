"""From the settings to what is learnt and what is measured: samples found and checked, and made into lessons.

Knows the groups of settings that say which pictures and which words; neither devices nor steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

from florence2.config import TrainSettings
from florence2.data.check import check_pictures, split
from florence2.data.resolve import resolve_dataset
from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model.processing import Processing, max_target_tokens
from florence2.training.lessons.augment import rules_of
from florence2.training.lessons.batches import Lessons

Say = Callable[[str], None]


def find(settings: TrainSettings, say: Say) -> tuple[list[Sample], list[Sample]]:
    """Find what to learn from, and what to measure on; `say` hears what was found."""
    data, val = settings.data, settings.data.val_dataset
    if (fraction := _fraction(val)) is not None:
        return split(_found(settings, data.dataset, say), fraction, settings.learning.seed)
    return _found(settings, data.dataset, say), _found(settings, val, say) if val else []


def make(settings: TrainSettings, samples: Sequence[Sample], model: Any, processor: Any) -> Lessons:
    """Make lessons of samples, as long as the model has positions for."""
    most = max_target_tokens(model.config)
    asked = settings.captions.max_length
    return Lessons(
        samples,
        Processing.of(processor),
        rules_of(settings.captions),
        seed=settings.learning.seed,
        max_prompt=most,
        max_target=most if asked is None else min(asked + 2, most),  # <s> and </s> come on top
    )


def _found(settings: TrainSettings, spec: str, say: Say) -> list[Sample]:
    data = settings.data
    found = resolve_dataset(
        spec,
        task=data.task,
        dataset_dir=data.dataset_dir,
        recursive=data.recursive,
        caption_extension=data.caption_extension,
        keep_lines=rules_of(settings.captions).enable_wildcard,
        missing=data.missing,
        image_column=data.image_column,
        text_column=data.text_column,
        offline=settings.model.offline,
    )
    found = check_pictures(found, missing=data.missing)
    say(found.summary())
    return found.samples


def _fraction(val: str | None) -> float | None:
    try:
        fraction = float(val or "")
    except ValueError:
        return None
    if not 0 < fraction < 1:
        raise UserError(f"`--val_dataset {val}` is no fraction", "give a number between 0 and 1, or a dataset")
    return fraction
