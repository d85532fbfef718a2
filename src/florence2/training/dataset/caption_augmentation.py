"""Captions varied from epoch to epoch, by kohya's rules in kohya's order.

Pure: a caption is a function of its text, the rules, the seed, the epoch and the sample's id, so neither the number
of workers nor a resume changes it. Knows nothing of pictures. A target that holds layout tokens is never touched.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from florence2.errors import UserError
from florence2.model.tasks import SPECIAL_TOKENS
from florence2.settings_io import parse_options

OPEN, CLOSE = "\x00", "\x01"  # stand for `{{` and `}}` while wildcards are read


@dataclass(frozen=True)
class CaptionAugmentation:
    """Kohya's caption options under kohya's names; the values here change nothing."""

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
        """Tell whether captions stay as they are, all lines of them."""
        return self == CaptionAugmentation()

    def with_total_steps(self, steps: int) -> "CaptionAugmentation":
        """Turn a warmup given as a fraction of the training into steps."""
        return (
            replace(self, token_warmup_step=int(self.token_warmup_step * steps)) if self.is_fractional_warmup else self
        )

    @property
    def is_fractional_warmup(self) -> bool:
        """Tell whether the warmup is given as a fraction of the training."""
        return 0 < self.token_warmup_step < 1


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
            raise UserError(f"`{name}` is {values[name]}, which is not a probability", "pass a number from 0 to 1")
    return CaptionAugmentation(**values)


def augment_caption(
    text: str, rules: CaptionAugmentation, *, seed: int, epoch: int, sample_id: str, step: int = 0, fixed: bool = False
) -> str:
    """Give the caption of one sample in one epoch; `step` is the optimizer step, for token warmup.

    `fixed` leaves out everything random, for measuring: prefix and suffix stay, and the first of several lines.
    """
    if rules.is_noop or has_special_tokens(text):
        return text
    rules = _deterministic(rules) if fixed else rules
    return _augment(text, rules, random.Random(f"{seed}/{epoch}/{sample_id}"), epoch, step)


def has_special_tokens(text: str) -> bool:
    """Tell whether a target holds location tokens or others of Florence-2's layout."""
    return "<" in text and _layout().search(text) is not None


def _augment(text: str, rules: CaptionAugmentation, chance: random.Random, epoch: int, step: int) -> str:
    text = " ".join(part for part in (rules.caption_prefix, text, rules.caption_suffix) if part)
    if _is_dropped(rules, chance, epoch):
        return ""
    text = _wildcards(text, chance) if rules.enable_wildcard else text.split("\n")[0]
    if _takes_parts(rules):
        text = _parts(text, rules, chance, step)
    if rules.secondary_separator:
        text = text.replace(rules.secondary_separator, rules.caption_separator)
    return text


def _is_dropped(rules: CaptionAugmentation, chance: random.Random, epoch: int) -> bool:
    if rules.caption_dropout_rate > 0 and chance.random() < rules.caption_dropout_rate:
        return True
    every = rules.caption_dropout_every_n_epochs
    return every > 0 and (epoch + 1) % every == 0


def _wildcards(text: str, chance: random.Random) -> str:
    """Choose one line, then one of each `{a|b|c}`; doubled braces are braces."""
    text = chance.choice(text.split("\n"))
    text = text.replace("{{", OPEN).replace("}}", CLOSE)
    text = re.sub(r"\{([^}]+)\}", lambda found: chance.choice(found[1].split("|")), text)
    return text.replace(OPEN, "{").replace(CLOSE, "}")


def _takes_parts(rules: CaptionAugmentation) -> bool:
    return (
        rules.shuffle_caption
        or rules.token_warmup_step > 0
        or rules.caption_tag_dropout_rate > 0
        or bool(rules.keep_tokens_separator)
    )


def _parts(text: str, rules: CaptionAugmentation, chance: random.Random, step: int) -> str:
    first, middle, last = _split(text, rules)
    if step < rules.token_warmup_step:
        growth = (len(middle) - rules.token_warmup_min) / rules.token_warmup_step
        middle = middle[: int(step * growth) + rules.token_warmup_min]
    if rules.shuffle_caption:
        chance.shuffle(middle)
    if rules.caption_tag_dropout_rate > 0:
        middle = [part for part in middle if chance.random() >= rules.caption_tag_dropout_rate]
    return f"{rules.caption_separator.rstrip()} ".join(first + middle + last)


def _split(text: str, rules: CaptionAugmentation) -> tuple[list[str], list[str], list[str]]:
    """Part a caption into what stays in front, what may move, and what stays behind."""

    def parts(words: str) -> list[str]:
        return [part.strip() for part in words.split(rules.caption_separator) if part.strip()]

    mark = rules.keep_tokens_separator
    if mark and mark in text:
        first, _, rest = text.partition(mark)
        middle, _, last = rest.partition(mark)
        return parts(first), parts(middle), parts(last)
    whole = parts(text)
    return whole[: rules.keep_tokens], whole[rules.keep_tokens :], []


def _deterministic(rules: CaptionAugmentation) -> CaptionAugmentation:
    return CaptionAugmentation(
        caption_separator=rules.caption_separator,
        keep_tokens_separator=rules.keep_tokens_separator,
        secondary_separator=rules.secondary_separator,
        caption_prefix=rules.caption_prefix,
        caption_suffix=rules.caption_suffix,
    )


def _check_type(name: str, value: Any) -> Any:
    """Check that a value has the type of the option's default; an integer is a valid float."""
    kind = float if name == "token_warmup_step" else type(getattr(CaptionAugmentation(), name))
    if kind is str:
        return "" if value is None else str(value)
    is_valid = isinstance(value, (int, float) if kind is float else kind)
    if not is_valid or (kind is not bool and isinstance(value, bool)):
        expected = {bool: "true or false", int: "an integer"}.get(kind, "a number")
        raise UserError(f"`--caption_args {name}={value}` is not {expected}", f"pass {expected}")
    return value


@cache
def _layout() -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
