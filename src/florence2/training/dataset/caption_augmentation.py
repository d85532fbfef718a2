"""Random augmentation of captions, with the options of kohya's sd-scripts in the order in which kohya applies them.

A caption follows from its text, the options, a random number generator, the epoch and the step. Targets with special
tokens of Florence-2 are never changed.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from florence2.errors import OptionError
from florence2.model.tasks import SPECIAL_TOKENS
from florence2.settings_io import parse_options

OPEN_BRACE, CLOSE_BRACE = "\x00", "\x01"  # replace `{{` and `}}` while wildcards are resolved


@dataclass(frozen=True)
class CaptionAugmentation:
    """Kohya's caption options under kohya's names; the defaults change nothing."""

    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    secondary_separator: str = ""
    enable_wildcard: bool = False
    caption_prefix: str = ""
    caption_suffix: str = ""
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    token_warmup_min: int = 1
    token_warmup_step: float = 0

    @property
    def is_noop(self) -> bool:
        """Return whether captions never change; a caption of several lines then keeps all of them."""
        return self == CaptionAugmentation()

    @property
    def is_fractional_warmup(self) -> bool:
        """Return whether `token_warmup_step` is a fraction of the training."""
        return 0 < self.token_warmup_step < 1

    @property
    def changes_parts(self) -> bool:
        """Return whether the separated parts of a caption are selected or reordered."""
        return (
            self.shuffle_caption
            or self.token_warmup_step > 0
            or self.caption_tag_dropout_rate > 0
            or bool(self.keep_tokens_separator)
        )

    def with_total_steps(self, steps: int) -> "CaptionAugmentation":
        """Convert a fractional `token_warmup_step` to a number of steps."""
        return (
            replace(self, token_warmup_step=int(self.token_warmup_step * steps)) if self.is_fractional_warmup else self
        )

    def without_randomness(self) -> "CaptionAugmentation":
        """Return the options whose effect is the same in each epoch: separators, prefix and suffix."""
        return CaptionAugmentation(
            caption_separator=self.caption_separator,
            keep_tokens_separator=self.keep_tokens_separator,
            secondary_separator=self.secondary_separator,
            caption_prefix=self.caption_prefix,
            caption_suffix=self.caption_suffix,
        )


def parse_caption_augmentation(
    words: Sequence[str], *, shuffle: bool = False, keep_tokens: int = 0, tag_dropout: float = 0.0
) -> CaptionAugmentation:
    """Parse `--caption_args key=value`; its options override the values of the flags, which the keywords hold."""
    options = parse_options("--caption_args", tuple(words), [field.name for field in fields(CaptionAugmentation)])
    values: dict[str, Any] = {
        "shuffle_caption": shuffle,
        "keep_tokens": keep_tokens,
        "caption_tag_dropout_rate": tag_dropout,
    }
    values |= {name: _check_type(name, value) for name, value in options.items()}
    for name in ("caption_dropout_rate", "caption_tag_dropout_rate"):
        if not 0 <= values.get(name, 0) <= 1:
            raise OptionError(f"`{name}` is {values[name]}, which is not a probability", "pass a number from 0 to 1")
    return CaptionAugmentation(**values)


def augment_caption(
    text: str,
    augmentation: CaptionAugmentation,
    rng: random.Random,
    *,
    epoch: int = 0,
    step: int = 0,
    augment: bool = True,
) -> str:
    """Augment a caption for one epoch; `step` is the optimizer step, on which the token warmup depends.

    With `augment=False` nothing random is applied: the first line is kept, and prefix and suffix are added.
    """
    if augmentation.is_noop or has_special_tokens(text):
        return text
    options = augmentation if augment else augmentation.without_randomness()
    text = " ".join(part for part in (options.caption_prefix, text, options.caption_suffix) if part)
    if _is_dropped(options, rng, epoch):
        return ""
    text = _resolve_wildcards(text, rng) if options.enable_wildcard else text.split("\n")[0]
    if options.changes_parts:
        text = _augment_parts(text, options, rng, step)
    if options.secondary_separator:
        text = text.replace(options.secondary_separator, options.caption_separator)
    return text


def has_special_tokens(text: str) -> bool:
    """Return whether a text contains location tokens or other special tokens of Florence-2."""
    return "<" in text and _special_token_pattern().search(text) is not None


def _is_dropped(options: CaptionAugmentation, rng: random.Random, epoch: int) -> bool:
    if options.caption_dropout_rate > 0 and rng.random() < options.caption_dropout_rate:
        return True
    every = options.caption_dropout_every_n_epochs
    return every > 0 and (epoch + 1) % every == 0


def _resolve_wildcards(text: str, rng: random.Random) -> str:
    """Choose one line, then one alternative of each `{a|b|c}`; `{{` and `}}` become single braces."""
    text = rng.choice(text.split("\n"))
    text = text.replace("{{", OPEN_BRACE).replace("}}", CLOSE_BRACE)
    text = re.sub(r"\{([^}]+)\}", lambda match: rng.choice(match[1].split("|")), text)
    return text.replace(OPEN_BRACE, "{").replace(CLOSE_BRACE, "}")


def _augment_parts(text: str, options: CaptionAugmentation, rng: random.Random, step: int) -> str:
    first, middle, last = _split_parts(text, options)
    if step < options.token_warmup_step:
        parts_per_step = (len(middle) - options.token_warmup_min) / options.token_warmup_step
        middle = middle[: int(step * parts_per_step) + options.token_warmup_min]
    if options.shuffle_caption:
        rng.shuffle(middle)
    if options.caption_tag_dropout_rate > 0:
        middle = [part for part in middle if rng.random() >= options.caption_tag_dropout_rate]
    return f"{options.caption_separator.rstrip()} ".join(first + middle + last)


def _split_parts(text: str, options: CaptionAugmentation) -> tuple[list[str], list[str], list[str]]:
    """Split a caption into the fixed parts at its start, the parts to augment, and the fixed parts at its end."""

    def split(section: str) -> list[str]:
        return [part.strip() for part in section.split(options.caption_separator) if part.strip()]

    marker = options.keep_tokens_separator
    if marker and marker in text:
        first, _, rest = text.partition(marker)
        middle, _, last = rest.partition(marker)
        return split(first), split(middle), split(last)
    parts = split(text)
    return parts[: options.keep_tokens], parts[options.keep_tokens :], []


def _check_type(name: str, value: Any) -> Any:
    """Check that a value has the type of the option's default; an integer is a valid float."""
    kind = float if name == "token_warmup_step" else type(getattr(CaptionAugmentation(), name))
    if kind is str:
        return "" if value is None else str(value)
    is_valid = isinstance(value, (int, float) if kind is float else kind)
    if not is_valid or (kind is not bool and isinstance(value, bool)):
        expected = {bool: "true or false", int: "an integer"}.get(kind, "a number")
        raise OptionError(f"`--caption_args {name}={value}` is not {expected}", f"pass {expected}")
    return value


@cache
def _special_token_pattern() -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
