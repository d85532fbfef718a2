import os

import pytest

from florence2.data.resolve import resolve_dataset
from florence2.data.sample import ResolvedDataset, SkipReason
from florence2.errors import UserError
from tests.data.images import captioned, image, jsonl

TASK = "more_detailed_caption"


def found(folder, **options) -> ResolvedDataset:
    return resolve_dataset(folder, task=TASK, **options)


def said(folder, **options) -> dict[str, str]:
    return {sample.id: sample.target for sample in found(folder, **options).samples}


def refused(folder, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        found(folder, **options)
    assert "\n" not in caught.value.what
    assert "\n" not in caught.value.hint
    return caught.value


def test_images_with_sidecars(tmp_path):
    captioned(tmp_path / "b.jpg", "a boat")
    captioned(tmp_path / "a.PNG", "an apple", ".TXT")
    captioned(tmp_path / "c.d.webp", "dots", ".Caption")
    (tmp_path / "notes.txt").write_text("no picture of mine")
    (tmp_path / "README.md").write_text("neither")
    result = found(tmp_path)
    assert [(s.id, s.target, s.task, s.input) for s in result.samples] == [
        ("a.PNG", "an apple", "<MORE_DETAILED_CAPTION>", ""),
        ("b.jpg", "a boat", "<MORE_DETAILED_CAPTION>", ""),
        ("c.d.webp", "dots", "<MORE_DETAILED_CAPTION>", ""),
    ]
    assert result.root == tmp_path
    assert result.samples[0].open().size == (20, 10)
    assert result.summary() == f"3 samples from 3 pictures in {tmp_path}/"


def test_paired_by_stem_and_folder(tmp_path):
    captioned(tmp_path / "a" / "x.jpg", "x of a")
    captioned(tmp_path / "b" / "x.jpg", "x of b")
    captioned(tmp_path / "b" / "c" / "y.jpg", "deep")
    captioned(tmp_path / "z.jpg", "top")
    assert said(tmp_path, recursive=True) == {
        "z.jpg": "top",
        "a/x.jpg": "x of a",
        "b/x.jpg": "x of b",
        "b/c/y.jpg": "deep",
    }
    assert said(tmp_path) == {"z.jpg": "top"}


def test_stems_that_begin_alike_are_not_mixed_up(tmp_path):
    captioned(tmp_path / "a.jpg", "one")
    captioned(tmp_path / "a.b.jpg", "two")
    captioned(tmp_path / "ab.jpg", "three")
    assert said(tmp_path) == {"a.b.jpg": "two", "a.jpg": "one", "ab.jpg": "three"}


def test_txt_comes_before_caption(tmp_path):
    captioned(tmp_path / "a.jpg", "from txt")
    (tmp_path / "a.caption").write_text("from caption")
    captioned(tmp_path / "b.jpg", "from caption", ".caption")
    assert said(tmp_path) == {"a.jpg": "from txt", "b.jpg": "from caption"}
    assert said(tmp_path, caption_extension=".caption") == {"a.jpg": "from caption", "b.jpg": "from caption"}


@pytest.mark.parametrize("extension", [".tags", "tags", ".TAGS"])
def test_another_extension(tmp_path, extension):
    captioned(tmp_path / "a.jpg", "boat, sea", ".tags")
    (tmp_path / "a.txt").write_text("not this one")
    assert said(tmp_path, caption_extension=extension) == {"a.jpg": "boat, sea"}


def test_a_suffix_behind_the_stem(tmp_path):
    captioned(tmp_path / "a.jpg", "by hand")
    (tmp_path / "a_generated.txt").write_text("by a model")
    assert said(tmp_path, caption_extension="_generated.txt") == {"a.jpg": "by a model"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"a boat\n", "a boat"),
        (b"\xef\xbb\xbfa boat", "a boat"),  # byte order mark
        (b"a boat\r\n\r\non the sea \r\n", "a boat on the sea"),
        ("Straße, 日本\n".encode(), "Straße, 日本"),
    ],
)
def test_text_of_a_sidecar(tmp_path, written, read):
    image(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes(written)
    assert said(tmp_path) == {"a.jpg": read}


def test_lines_are_kept_for_who_wants_them(tmp_path):
    captioned(tmp_path / "a.jpg", "one\n\n two \n")
    assert said(tmp_path, keep_lines=True) == {"a.jpg": "one\ntwo"}


def test_text_that_is_not_utf8_is_named(tmp_path):
    image(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes("Straße".encode("latin-1"))
    error = refused(tmp_path)
    assert error.what == f"{tmp_path / 'a.txt'} is not UTF-8 text (byte 4)"
    assert error.hint == "save it as UTF-8"


def test_images_without_captions_are_counted_and_named(tmp_path):
    captioned(tmp_path / "a.jpg", "a boat")
    image(tmp_path / "b.jpg")
    captioned(tmp_path / "c.jpg", " \n ")
    error = refused(tmp_path)
    assert error.what == f"2 of 3 pictures in {tmp_path}/ have no caption, the first is {tmp_path / 'b.jpg'}"
    assert error.hint == f"write {tmp_path / 'b.txt'}, or pass --on_missing skip"
    result = found(tmp_path, missing="skip")
    assert [s.id for s in result.samples] == ["a.jpg"]
    assert [(s.id, s.reason) for s in result.skipped] == [
        ("b.jpg", SkipReason.NO_CAPTION),
        ("c.jpg", SkipReason.NO_CAPTION),
    ]
    assert result.num_images == 3
    assert result.summary() == (
        f"1 sample from 1 picture in {tmp_path}/; left out: 2 that have no caption, the first is {tmp_path / 'b.jpg'}"
    )


def test_one_of_many_and_one_of_one(tmp_path):
    captioned(tmp_path / "a.jpg", "a boat")
    image(tmp_path / "b.jpg")
    assert refused(tmp_path).what.startswith(f"1 of 2 pictures in {tmp_path}/ has no caption, the first is ")
    alone = image(tmp_path / "alone" / "b.jpg")
    assert refused(alone.parent).what == f"{alone} has no caption"


def test_nothing_to_learn_from_is_an_error_even_when_skipping(tmp_path):
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    error = refused(tmp_path, missing="skip")
    assert error.what == f"all 2 pictures in {tmp_path}/ have no caption, the first is {tmp_path / 'a.jpg'}"
    assert error.hint == f"write {tmp_path / 'a.txt'}"


def test_folders_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert refused(tmp_path).what == f"{tmp_path}/ holds no pictures"
    captioned(tmp_path / "deep" / "er" / "a.jpg", "a boat")
    error = refused(tmp_path)
    assert error.what == f"{tmp_path}/ holds no pictures itself, but {tmp_path}/deep/er/ does"
    assert error.hint == f"name {tmp_path}/deep/er/, or pass --recursive"


def test_hidden_files_are_left_alone(tmp_path):
    captioned(tmp_path / "a.jpg", "a boat")
    (tmp_path / "._a.jpg").write_bytes(b"\x00\x05\x16\x07")  # beside every file on some disks
    captioned(tmp_path / ".thumbnails" / "a.jpg", "small")
    assert said(tmp_path, recursive=True) == {"a.jpg": "a boat"}


def test_links_in_a_circle_end(tmp_path):
    captioned(tmp_path / "in" / "a.jpg", "a boat")
    (tmp_path / "in" / "up").symlink_to(tmp_path, target_is_directory=True)
    ids = [sample.id for sample in found(tmp_path, recursive=True).samples]
    assert ids[0] == "in/a.jpg"
    assert len(ids) <= 2


def test_order_does_not_follow_the_disk(tmp_path):
    for name in ("c", "a", "b"):
        captioned(tmp_path / name / "2.jpg", name)
        captioned(tmp_path / name / "1.jpg", name)
    ids = [sample.id for sample in found(tmp_path, recursive=True).samples]
    assert ids == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg", "c/2.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is allowed to root")
def test_forbidden_folder(tmp_path):
    captioned(tmp_path / "in" / "a.jpg", "a boat")
    (tmp_path / "in").chmod(0)
    assert "cannot be listed" in refused(tmp_path / "in").what


def test_task_with_its_input(tmp_path):
    captioned(tmp_path / "a.jpg", "yes")
    (sample,) = resolve_dataset(tmp_path, task="is it red?").samples
    assert (sample.task, sample.input) == ("is it red?", "")
    with pytest.raises(UserError, match="needs words for each picture, which a sidecar cannot hold"):
        resolve_dataset(tmp_path, task="open_vocabulary_detection")
    (sample,) = resolve_dataset(tmp_path, task="<OPEN_VOCABULARY_DETECTION>boat").samples
    assert (sample.task, sample.input) == ("<OPEN_VOCABULARY_DETECTION>", "boat")


# --- tables in the folder ----------------------------------------------------------------------------------------


def test_metadata_goes_before_sidecars_and_both_count(tmp_path):
    captioned(tmp_path / "a.jpg", "from sidecar")
    captioned(tmp_path / "b.jpg", "from sidecar")
    jsonl(tmp_path / "metadata.jsonl", [{"file_name": "a.jpg", "text": "from table"}])
    assert said(tmp_path) == {"a.jpg": "from table", "b.jpg": "from sidecar"}


def test_metadata_may_name_images_below(tmp_path):
    image(tmp_path / "in" / "a.jpg")
    jsonl(tmp_path / "metadata.jsonl", [{"file_name": "in/a.jpg", "text": "a boat"}])
    assert said(tmp_path) == {"in/a.jpg": "a boat"}


def test_metadata_in_nested_folders(tmp_path):
    for part in ("train", "test"):
        image(tmp_path / part / "a.jpg")
        jsonl(tmp_path / part / "metadata.jsonl", [{"file_name": "a.jpg", "text": part}])
    assert said(tmp_path, recursive=True) == {"test/a.jpg": "test", "train/a.jpg": "train"}
    assert said(tmp_path / "train") == {"a.jpg": "train"}
    assert said(tmp_path, split="train") == {"a.jpg": "train"}
    assert said(f"{tmp_path}:train") == {"a.jpg": "train"}
    assert "has no folder `valid`" in refused(tmp_path, split="valid").what


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_has_three_names(tmp_path, name):
    captioned(tmp_path / name / "a.jpg", "a boat")
    for asked in ("val", "valid", "validation"):
        assert said(tmp_path, split=asked) == {"a.jpg": "a boat"}


def test_image_that_the_table_forgot(tmp_path):
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    jsonl(tmp_path / "metadata.jsonl", [{"file_name": "a.jpg", "text": "a boat"}])
    assert refused(tmp_path).what.startswith("1 of 2 pictures")
    assert said(tmp_path, missing="skip") == {"a.jpg": "a boat"}


def test_image_that_the_table_made_up(tmp_path):
    image(tmp_path / "a.jpg")
    rows = [{"file_name": "a.jpg", "text": "a boat"}, {"file_name": "none.jpg", "text": "a ghost"}]
    jsonl(tmp_path / "metadata.jsonl", rows)
    error = refused(tmp_path)
    assert error.what == f"1 of 2 pictures in {tmp_path}/ does not exist, the first is {tmp_path / 'none.jpg'}"
    assert said(tmp_path, missing="skip") == {"a.jpg": "a boat"}


@pytest.mark.parametrize("typo", ["metadata.json1", "metadata.jsonI", "metadata.jsn"])
def test_misspelt_metadata(tmp_path, typo):
    image(tmp_path / "a.jpg")
    (tmp_path / typo).write_text('{"file_name": "a.jpg", "text": "a boat"}')
    assert refused(tmp_path, missing="skip").hint == f"rename {tmp_path / typo} to metadata.jsonl"


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.json"])
def test_table_that_must_be_named_itself(tmp_path, name):
    image(tmp_path / "a.jpg")
    (tmp_path / name).write_text("{}")
    assert refused(tmp_path).hint == f"name {tmp_path / name} itself as the dataset"
