import random

import pytest

from florence2.errors import UserError
from florence2.model.tasks import SPECIAL_TOKENS
from florence2.training.dataset.caption_augmentation import (
    CaptionAugmentation,
    augment_caption,
    parse_caption_augmentation,
)

TAGS = "1girl, red hair, smile, outdoors, sky"


def augment_many(text: str, augmentation: CaptionAugmentation, number: int = 200, **options: int) -> list[str]:
    return [augment_caption(text, augmentation, random.Random(f"0/0/{n}"), **options) for n in range(number)]


def test_default_options_change_nothing() -> None:
    text = "two\nlines, {a|b}"
    assert augment_caption(text, CaptionAugmentation(), random.Random(0)) == text


def test_shuffling_keeps_all_parts() -> None:
    captions = augment_many(TAGS, CaptionAugmentation(shuffle_caption=True))
    assert len(set(captions)) > 50
    assert {tuple(sorted(text.split(", "))) for text in captions} == {tuple(sorted(TAGS.split(", ")))}


def test_keep_tokens_fixes_the_first_parts() -> None:
    augmentation = CaptionAugmentation(shuffle_caption=True, keep_tokens=2, caption_tag_dropout_rate=0.5)
    captions = augment_many(TAGS, augmentation)
    assert all(text.startswith("1girl, red hair") for text in captions)
    assert any("smile" not in text for text in captions)


def test_keep_tokens_may_exceed_the_number_of_parts() -> None:
    assert set(augment_many("a, b", CaptionAugmentation(shuffle_caption=True, keep_tokens=9))) == {"a, b"}


def test_keep_tokens_separator_fixes_the_parts_at_both_ends() -> None:
    augmentation = CaptionAugmentation(shuffle_caption=True, keep_tokens_separator="|||")
    captions = augment_many("a, b ||| c, d, e ||| f", augmentation)
    assert all(text.startswith("a, b, ") and text.endswith(", f") for text in captions)
    assert len(set(captions)) == 6
    assert augment_many("a ||| b", CaptionAugmentation(keep_tokens_separator="|||"), 1) == ["a, b"]


def test_secondary_separator_joins_parts() -> None:
    captions = augment_many("a;;;b, c", CaptionAugmentation(shuffle_caption=True, secondary_separator=";;;"))
    assert set(captions) == {"a,b, c", "c, a,b"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {red|blue} dog", {"a red dog", "a blue dog"}),
        ("{{as is}}", {"{as is}"}),
        ("one\ntwo", {"one", "two"}),
        ("{a|b}\n{c|d}", {"a", "b", "c", "d"}),  # several captions, each with alternatives
    ],
)
def test_wildcards_choose_a_line_and_alternatives(text: str, expected: set[str]) -> None:
    assert set(augment_many(text, CaptionAugmentation(enable_wildcard=True))) == expected


def test_first_line_is_the_caption_without_wildcards() -> None:
    assert set(augment_many("one\ntwo", CaptionAugmentation(caption_prefix="x"))) == {"x one"}


def test_prefix_and_suffix_are_joined_with_a_space() -> None:
    augmentation = CaptionAugmentation(caption_prefix="photo of", caption_suffix="!")
    assert augment_many("cat", augmentation, 1) == ["photo of cat !"]


def test_dropout_rates_are_frequencies() -> None:
    num_empty = augment_many("cat", CaptionAugmentation(caption_dropout_rate=0.3), 2000).count("")
    assert 500 < num_empty < 700
    captions = augment_many("x, x, x, x", CaptionAugmentation(caption_tag_dropout_rate=0.25), 1000)
    assert 2850 < sum(text.count("x") for text in captions) < 3150


def test_captions_are_dropped_every_third_epoch() -> None:
    augmentation = CaptionAugmentation(caption_dropout_every_n_epochs=3)
    captions = [augment_caption("cat", augmentation, random.Random(0), epoch=epoch) for epoch in range(6)]
    assert captions == ["cat", "cat", ""] * 2


def test_token_warmup_adds_parts_step_by_step() -> None:
    augmentation = CaptionAugmentation(token_warmup_min=1, token_warmup_step=0.5).with_total_steps(steps=20)
    num_parts = [augment_many(TAGS, augmentation, 1, step=step)[0].count(",") + 1 for step in range(12)]
    assert num_parts == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5]


def test_targets_with_special_tokens_never_change() -> None:
    boxes = "cat, dog" + SPECIAL_TOKENS[4] * 4
    augmentation = CaptionAugmentation(shuffle_caption=True, caption_dropout_rate=1, caption_prefix="x")
    assert set(augment_many(boxes, augmentation)) == {boxes}
    assert set(augment_many("a <b>, c", CaptionAugmentation(caption_prefix="x"))) == {"x a <b>, c"}


def test_captions_depend_on_the_generator_alone() -> None:
    augmentation = CaptionAugmentation(shuffle_caption=True)
    before = augment_caption(TAGS, augmentation, random.Random("0/0/a"))
    random.seed(99)
    assert augment_caption(TAGS, augmentation, random.Random("0/0/a")) == before
    assert len({augment_caption(TAGS, augmentation, random.Random(f"0/{epoch}/a")) for epoch in range(20)}) > 10


def test_evaluation_captions_are_not_random() -> None:
    augmentation = CaptionAugmentation(shuffle_caption=True, caption_dropout_rate=1, caption_prefix="p")
    assert augment_caption(f"{TAGS}\nmore", augmentation, random.Random(0), augment=False) == f"p {TAGS}"
    shuffled = CaptionAugmentation(shuffle_caption=True)
    assert augment_caption("first\nsecond", shuffled, random.Random(0), augment=False) == "first"


def test_caption_args_override_the_flags() -> None:
    words = ["keep_tokens_separator=|||"]
    assert parse_caption_augmentation(words, shuffle=True, keep_tokens=1, tag_dropout=0.5) == CaptionAugmentation(
        shuffle_caption=True, keep_tokens=1, caption_tag_dropout_rate=0.5, keep_tokens_separator="|||"
    )
    assert parse_caption_augmentation(["keep_tokens=2"], keep_tokens=1).keep_tokens == 2
    assert parse_caption_augmentation(["caption_prefix=7"]).caption_prefix == "7"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("shufle_caption=true", "did you mean `shuffle_caption`?"),
        ("keep_tokens=many", "pass an integer"),
        ("enable_wildcard=1", "pass true or false"),
        ("caption_dropout_rate=2", "pass a number from 0 to 1"),
        ("shuffle_caption", "pass `--caption_args shuffle_caption=...`"),
    ],
)
def test_invalid_caption_args_are_refused(word: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_caption_augmentation([word])
    assert caught.value.hint == hint
