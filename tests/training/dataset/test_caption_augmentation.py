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


def many(text: str, rules: CaptionAugmentation, times: int = 200, **more: int) -> list[str]:
    return [augment_caption(text, rules, seed=0, epoch=0, sample_id=str(n), **more) for n in range(times)]


def test_without_rules_nothing_changes() -> None:
    assert (
        augment_caption("two\nlines, {a|b}", CaptionAugmentation(), seed=0, epoch=0, sample_id="a")
        == "two\nlines, {a|b}"
    )


def test_shuffle_moves_parts_and_loses_none() -> None:
    seen = many(TAGS, CaptionAugmentation(shuffle_caption=True))
    assert len(set(seen)) > 50
    assert {tuple(sorted(text.split(", "))) for text in seen} == {tuple(sorted(TAGS.split(", ")))}


def test_frozen_parts_stay_in_front() -> None:
    seen = many(TAGS, CaptionAugmentation(shuffle_caption=True, keep_tokens=2, caption_tag_dropout_rate=0.5))
    assert all(text.startswith("1girl, red hair") for text in seen)
    assert any("smile" not in text for text in seen)


def test_more_frozen_parts_than_parts() -> None:
    assert set(many("a, b", CaptionAugmentation(shuffle_caption=True, keep_tokens=9))) == {"a, b"}


def test_the_separator_keeps_both_ends() -> None:
    rules = CaptionAugmentation(shuffle_caption=True, keep_tokens_separator="|||")
    seen = many("a, b ||| c, d, e ||| f", rules)
    assert all(text.startswith("a, b, ") and text.endswith(", f") for text in seen)
    assert len(set(seen)) == 6
    assert many("a ||| b", CaptionAugmentation(keep_tokens_separator="|||"), 1) == ["a, b"]


def test_the_secondary_separator_holds_parts_together() -> None:
    seen = many("a;;;b, c", CaptionAugmentation(shuffle_caption=True, secondary_separator=";;;"))
    assert set(seen) == {"a,b, c", "c, a,b"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {red|blue} dog", {"a red dog", "a blue dog"}),
        ("{{as is}}", {"{as is}"}),
        ("one\ntwo", {"one", "two"}),
        ("{a|b}\n{c|d}", {"a", "b", "c", "d"}),  # several captions, each with choices
    ],
)
def test_wildcards(text: str, expected: set[str]) -> None:
    assert set(many(text, CaptionAugmentation(enable_wildcard=True))) == expected


def test_without_wildcards_the_first_line_is_the_caption() -> None:
    assert set(many("one\ntwo", CaptionAugmentation(caption_prefix="x"))) == {"x one"}


def test_prefix_and_suffix_are_joined_with_a_space() -> None:
    assert many("cat", CaptionAugmentation(caption_prefix="photo of", caption_suffix="!"), 1) == ["photo of cat !"]


def test_rates_are_what_they_say() -> None:
    silent = many("cat", CaptionAugmentation(caption_dropout_rate=0.3), 2000).count("")
    assert 500 < silent < 700
    kept = sum(text.count("x") for text in many("x, x, x, x", CaptionAugmentation(caption_tag_dropout_rate=0.25), 1000))
    assert 2850 < kept < 3150


def test_every_third_epoch_is_silent() -> None:
    rules = CaptionAugmentation(caption_dropout_every_n_epochs=3)
    assert [augment_caption("cat", rules, seed=0, epoch=n, sample_id="a") for n in range(6)] == ["cat", "cat", ""] * 2


def test_warmup_shows_more_parts_with_time() -> None:
    rules = CaptionAugmentation(token_warmup_min=1, token_warmup_step=0.5).with_total_steps(steps=20)
    shown = [many(TAGS, rules, 1, step=n)[0].count(",") + 1 for n in range(12)]
    assert shown == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5]


def test_layout_is_never_touched() -> None:
    boxes = "cat, dog" + SPECIAL_TOKENS[4] * 4
    rules = CaptionAugmentation(shuffle_caption=True, caption_dropout_rate=1, caption_prefix="x")
    assert set(many(boxes, rules)) == {boxes}
    assert set(many("a <b>, c", CaptionAugmentation(caption_prefix="x"))) == {"x a <b>, c"}


def test_a_caption_depends_on_seed_epoch_and_id_alone() -> None:
    rules = CaptionAugmentation(shuffle_caption=True)

    def at(seed: int, epoch: int, name: str) -> str:
        return augment_caption(TAGS, rules, seed=seed, epoch=epoch, sample_id=name)

    before = at(0, 0, "a")
    random.seed(99)
    assert at(0, 0, "a") == before
    assert len({at(0, epoch, "a") for epoch in range(20)}) > 10
    assert len({at(seed, 0, "a") for seed in range(20)}) > 10
    assert len({at(0, 0, str(name)) for name in range(20)}) > 10


def test_measuring_leaves_chance_out() -> None:
    rules = CaptionAugmentation(shuffle_caption=True, caption_dropout_rate=1, caption_prefix="p")
    assert augment_caption(TAGS, rules, seed=0, epoch=0, sample_id="a", fixed=True) == f"p {TAGS}"


def test_published_flags_and_the_open_door() -> None:
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
        ("shuffle_caption", "write `--caption_args shuffle_caption=...`"),
    ],
)
def test_refused(word: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_caption_augmentation([word])
    assert caught.value.hint == hint
