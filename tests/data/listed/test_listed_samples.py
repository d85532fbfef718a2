"""Samples and keys of very many images: equal to lists and sets, in less memory."""

import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence2.data.listed.digest_set import DigestSet, digest_key
from florence2.data.listed.listed_images import ListedImages, NameList
from florence2.data.listed.listed_samples import ListedSamples, SampleStep, sample_keys, select_samples
from florence2.data.resolve import resolve_images
from florence2.data.sample import Sample
from florence2.pipeline.task_pipeline import TaskPipeline

MANY = 20_000
NAMES = ["a.jpg", "line\nbreak.jpg", "猫 😀.png", os.fsdecode(b"bad\xff.jpg"), *(f"{n:03}.jpg" for n in range(600))]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), max_size=30), st.lists(st.tuples(st.text(), st.text()), max_size=30))
def test_digest_set_equals_a_set_of_keys(added: list[tuple[str, str]], others: list[tuple[str, str]]) -> None:
    digests, more, keys = DigestSet(), DigestSet(), set[tuple[str, str]]()
    for key in added:
        assert digests.add(digest_key(*key)) is (key not in keys)
        keys.add(key)
    for key in others:
        more.add(digest_key(*key))
        assert (digest_key(*key) in digests) is (key in keys)
    assert len(digests) == len(keys)
    assert sorted(digests) == sorted(digest_key(*key) for key in keys)
    assert digests.has_common(more) is bool(keys & set(others))


def test_separators_in_a_key_do_not_make_it_another_key() -> None:
    keys = [("a\0b", "c"), ("a", "b\0c"), ("a", "b", "c"), ("a\0b\0c", ""), ("", "a\0b\0c"), ("\0", ""), ("", "\0")]
    assert len({digest_key(*key) for key in keys}) == len(keys)


def bytes_of(make: Callable[[], Any]) -> int:
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    try:
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        del made


def test_a_name_and_its_digest_need_few_bytes() -> None:
    names = [f"{number:07}.jpg" for number in range(MANY)]

    def list_images() -> ListedImages:
        images = ListedImages(Path("photos"))
        images.add_folder("a/rather/long/path/to/these/photos", names)
        return images

    def digest_names() -> DigestSet:
        digests = DigestSet()
        for name in names:
            digests.add(digest_key(name, "<CAPTION>", "", "photos"))
        assert len(digests) == MANY
        return digests

    assert bytes_of(list_images) < 14 * MANY  # 12 are letters
    assert bytes_of(digest_names) < 32 * MANY  # 16 are the digest


def test_names_come_back_as_they_were() -> None:
    names = NameList(NAMES)
    assert list(names) == [names[index] for index in range(len(names))] == NAMES
    assert list(NameList([])) == []


def test_listed_samples_are_those_of_a_list() -> None:
    images = ListedImages(Path("photos"))
    images.add_folder("", NAMES)
    images.add_folder("empty", [])
    images.add_folder("in/it", ["b.jpg", "c.jpg"])
    ids = [*NAMES, "in/it/b.jpg", "in/it/c.jpg"]
    samples = ListedSamples(images, (SampleStep("<OD>"), SampleStep("<CAPTION_TO_PHRASE_GROUNDING>", "cat")))
    steps = (("<OD>", ""), ("<CAPTION_TO_PHRASE_GROUNDING>", "cat"))
    expected = [Sample(each, Path("photos") / each, *step) for each in ids for step in steps]

    def fields(samples: Any) -> list[tuple[Any, ...]]:
        return [(*each.key, each.image) for each in samples]

    assert len(samples) == len(expected)
    assert list(images) == [images[index] for index in range(len(images))] == ids
    assert fields(samples) == fields(samples[index] for index in range(len(samples))) == fields(expected)
    assert fields(samples[5:9]) == fields(expected[5:9])
    assert fields([samples[-1], samples.sample_of("in/it/c.jpg")]) == fields(expected[:-3:-1])
    assert list(sample_keys(samples)) == list(sample_keys(expected))
    mask = bytearray(number % 3 == 0 for number in range(len(expected)))
    assert fields(select_samples(samples, mask)) == fields(select_samples(expected, mask)) == fields(expected[::3])
    with pytest.raises(IndexError):
        samples[len(samples)]


def test_images_of_folders_come_in_one_order_whatever_the_file_system_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/2.jpg", "b/1.jpg", "10.jpg", "9.jpg", "a/x.jpg", "a/c/y.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            with scandir(path) as entries:
                self._entries = list(entries)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self._entries

        def __exit__(self, *_: object) -> None: ...

    def keys() -> list[tuple[str, str, str]]:
        pipeline = TaskPipeline.parse(["caption", "od"])
        _, dataset = pipeline.apply_to(lambda task, _: resolve_images(tmp_path, task=task, recursive=True))
        return [sample.key for sample in dataset.samples]

    before = keys()
    monkeypatch.setattr(os, "scandir", Reversed)
    assert keys() == before
    ids = ["10.jpg", "9.jpg", "a/x.jpg", "a/c/y.jpg", "b/1.jpg", "b/2.jpg"]
    assert [key[:2] for key in before] == [(each, task) for each in ids for task in ("<CAPTION>", "<OD>")]
