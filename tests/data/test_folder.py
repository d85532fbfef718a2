import os

import pytest

from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.sample import ResolvedDataset, SkipReason
from florence2.errors import DatasetError
from tests.data.images import captioned, image, jsonl

TASK = "more_detailed_caption"


def resolve(folder, **options) -> ResolvedDataset:
    return resolve_dataset(folder, DatasetOptions(TASK, **options))


def read_captions(folder, **options) -> dict[str, str]:
    return {sample.id: sample.target for sample in resolve(folder, **options).samples}


def read_error(folder, **options) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        resolve(folder, **options)
    assert "\n" not in caught.value.what
    assert "\n" not in caught.value.hint
    return caught.value


def test_images_with_sidecars(tmp_path):
    captioned(tmp_path / "b.jpg", "a boat")
    captioned(tmp_path / "a.PNG", "an apple", ".TXT")
    captioned(tmp_path / "c.d.webp", "dots", ".Caption")
    (tmp_path / "notes.txt").write_text("no sidecar of an image")
    (tmp_path / "README.md").write_text("neither")
    result = resolve(tmp_path)
    assert [(s.id, s.target, s.task, s.input) for s in result.samples] == [
        ("a.PNG", "an apple", "<MORE_DETAILED_CAPTION>", ""),
        ("b.jpg", "a boat", "<MORE_DETAILED_CAPTION>", ""),
        ("c.d.webp", "dots", "<MORE_DETAILED_CAPTION>", ""),
    ]
    assert result.root == tmp_path
    assert result.samples[0].open().size == (20, 10)
    assert result.summary() == f"3 samples from 3 images in {tmp_path}/"


def test_sidecars_are_paired_by_stem_and_folder(tmp_path):
    captioned(tmp_path / "a" / "x.jpg", "x of a")
    captioned(tmp_path / "b" / "x.jpg", "x of b")
    captioned(tmp_path / "b" / "c" / "y.jpg", "deep")
    captioned(tmp_path / "z.jpg", "top")
    assert read_captions(tmp_path, recursive=True) == {
        "z.jpg": "top",
        "a/x.jpg": "x of a",
        "b/x.jpg": "x of b",
        "b/c/y.jpg": "deep",
    }
    assert read_captions(tmp_path) == {"z.jpg": "top"}


def test_stems_with_a_common_prefix(tmp_path):
    captioned(tmp_path / "a.jpg", "one")
    captioned(tmp_path / "a.b.jpg", "two")
    captioned(tmp_path / "ab.jpg", "three")
    assert read_captions(tmp_path) == {"a.b.jpg": "two", "a.jpg": "one", "ab.jpg": "three"}


def test_txt_takes_precedence_over_caption(tmp_path):
    captioned(tmp_path / "a.jpg", "from txt")
    (tmp_path / "a.caption").write_text("from caption")
    captioned(tmp_path / "b.jpg", "from caption", ".caption")
    assert read_captions(tmp_path) == {"a.jpg": "from txt", "b.jpg": "from caption"}
    assert read_captions(tmp_path, caption_extension=".caption") == {"a.jpg": "from caption", "b.jpg": "from caption"}


@pytest.mark.parametrize("extension", [".tags", "tags", ".TAGS"])
def test_custom_extension(tmp_path, extension):
    captioned(tmp_path / "a.jpg", "boat, sea", ".tags")
    (tmp_path / "a.txt").write_text("not this one")
    assert read_captions(tmp_path, caption_extension=extension) == {"a.jpg": "boat, sea"}


def test_suffix_after_the_stem(tmp_path):
    captioned(tmp_path / "a.jpg", "by hand")
    (tmp_path / "a_generated.txt").write_text("by a model")
    assert read_captions(tmp_path, caption_extension="_generated.txt") == {"a.jpg": "by a model"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"a boat\n", "a boat"),
        (b"\xef\xbb\xbfa boat", "a boat"),  # byte order mark
        (b"a boat\r\n\r\non the sea \r\n", "a boat on the sea"),
        ("Straße, 日本\n".encode(), "Straße, 日本"),
    ],
)
def test_text_of_a_sidecar_is_normalized(tmp_path, written, read):
    image(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes(written)
    assert read_captions(tmp_path) == {"a.jpg": read}


def test_keep_lines_preserves_line_breaks(tmp_path):
    captioned(tmp_path / "a.jpg", "one\n\n two \n")
    assert read_captions(tmp_path, keep_lines=True) == {"a.jpg": "one\ntwo"}


def test_sidecar_that_is_not_utf8_is_named(tmp_path):
    image(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes("Straße".encode("latin-1"))
    error = read_error(tmp_path)
    assert error.what == f"{tmp_path / 'a.txt'} is not UTF-8 text (byte 4)"
    assert error.hint == "save it as UTF-8"


def test_images_without_captions_are_counted_and_named(tmp_path):
    captioned(tmp_path / "a.jpg", "a boat")
    image(tmp_path / "b.jpg")
    captioned(tmp_path / "c.jpg", " \n ")
    error = read_error(tmp_path)
    assert error.what == f"2 of 3 images in {tmp_path}/ have no caption, the first is {tmp_path / 'b.jpg'}"
    assert error.hint == f"write {tmp_path / 'b.txt'}, or pass --on_missing skip"
    result = resolve(tmp_path, on_missing="skip")
    assert [s.id for s in result.samples] == ["a.jpg"]
    assert [(s.id, s.reason) for s in result.skipped] == [
        ("b.jpg", SkipReason.NO_CAPTION),
        ("c.jpg", SkipReason.NO_CAPTION),
    ]
    assert result.num_images == 3
    assert result.summary() == (
        f"1 sample from 1 image in {tmp_path}/; skipped: 2 that have no caption, the first is {tmp_path / 'b.jpg'}"
    )


def test_one_uncaptioned_image_is_named(tmp_path):
    captioned(tmp_path / "a.jpg", "a boat")
    image(tmp_path / "b.jpg")
    assert read_error(tmp_path).what.startswith(f"1 of 2 images in {tmp_path}/ has no caption, the first is ")
    alone = image(tmp_path / "alone" / "b.jpg")
    assert read_error(alone.parent).what == f"{alone} has no caption"


def test_dataset_without_captions_is_an_error_even_with_skip(tmp_path):
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    error = read_error(tmp_path, on_missing="skip")
    assert error.what == f"all 2 images in {tmp_path}/ have no caption, the first is {tmp_path / 'a.jpg'}"
    assert error.hint == f"write {tmp_path / 'a.txt'}"


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert read_error(tmp_path).what == f"{tmp_path}/ contains no images"
    captioned(tmp_path / "deep" / "er" / "a.jpg", "a boat")
    error = read_error(tmp_path)
    assert error.what == f"{tmp_path}/ contains no images itself, but {tmp_path}/deep/er/ does"
    assert error.hint == f"pass {tmp_path}/deep/er/, or pass --recursive"


def test_hidden_files_are_ignored(tmp_path):
    captioned(tmp_path / "a.jpg", "a boat")
    (tmp_path / "._a.jpg").write_bytes(b"\x00\x05\x16\x07")  # beside every file on some disks
    captioned(tmp_path / ".thumbnails" / "a.jpg", "small")
    assert read_captions(tmp_path, recursive=True) == {"a.jpg": "a boat"}


def test_circular_links_end(tmp_path):
    captioned(tmp_path / "in" / "a.jpg", "a boat")
    (tmp_path / "in" / "up").symlink_to(tmp_path, target_is_directory=True)
    ids = [sample.id for sample in resolve(tmp_path, recursive=True).samples]
    assert ids[0] == "in/a.jpg"
    assert len(ids) <= 2


def test_images_are_sorted_by_name(tmp_path):
    for name in ("c", "a", "b"):
        captioned(tmp_path / name / "2.jpg", name)
        captioned(tmp_path / name / "1.jpg", name)
    ids = [sample.id for sample in resolve(tmp_path, recursive=True).samples]
    assert ids == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg", "c/2.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root has every permission")
def test_folder_without_permission(tmp_path):
    captioned(tmp_path / "in" / "a.jpg", "a boat")
    (tmp_path / "in").chmod(0)
    assert "cannot be listed" in read_error(tmp_path / "in").what


def test_tasks_with_an_input(tmp_path):
    captioned(tmp_path / "a.jpg", "yes")
    (sample,) = resolve_dataset(tmp_path, DatasetOptions("is it red?")).samples
    assert (sample.task, sample.input) == ("is it red?", "")
    with pytest.raises(DatasetError, match="needs words for each image, and a sidecar has none"):
        resolve_dataset(tmp_path, DatasetOptions("open_vocabulary_detection"))
    (sample,) = resolve_dataset(tmp_path, DatasetOptions("<OPEN_VOCABULARY_DETECTION>boat")).samples
    assert (sample.task, sample.input) == ("<OPEN_VOCABULARY_DETECTION>", "boat")


# --- metadata tables in the folder -----------------------------------------------------------------------------------


def test_metadata_takes_precedence_over_sidecars(tmp_path):
    captioned(tmp_path / "a.jpg", "from sidecar")
    captioned(tmp_path / "b.jpg", "from sidecar")
    jsonl(tmp_path / "metadata.jsonl", [{"file_name": "a.jpg", "text": "from table"}])
    assert read_captions(tmp_path) == {"a.jpg": "from table", "b.jpg": "from sidecar"}


def test_metadata_names_images_in_subfolders(tmp_path):
    image(tmp_path / "in" / "a.jpg")
    jsonl(tmp_path / "metadata.jsonl", [{"file_name": "in/a.jpg", "text": "a boat"}])
    assert read_captions(tmp_path) == {"in/a.jpg": "a boat"}


def test_metadata_in_nested_folders(tmp_path):
    for part in ("train", "test"):
        image(tmp_path / part / "a.jpg")
        jsonl(tmp_path / part / "metadata.jsonl", [{"file_name": "a.jpg", "text": part}])
    assert read_captions(tmp_path, recursive=True) == {"test/a.jpg": "test", "train/a.jpg": "train"}
    assert read_captions(tmp_path / "train") == {"a.jpg": "train"}
    assert read_captions(tmp_path, split="train") == {"a.jpg": "train"}
    assert read_captions(f"{tmp_path}:train") == {"a.jpg": "train"}
    assert "has no folder `valid`" in read_error(tmp_path, split="valid").what


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_aliases_of_the_validation_split(tmp_path, name):
    captioned(tmp_path / name / "a.jpg", "a boat")
    for split in ("val", "valid", "validation"):
        assert read_captions(tmp_path, split=split) == {"a.jpg": "a boat"}


def test_image_that_no_table_names(tmp_path):
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    jsonl(tmp_path / "metadata.jsonl", [{"file_name": "a.jpg", "text": "a boat"}])
    assert read_error(tmp_path).what.startswith("1 of 2 images")
    assert read_captions(tmp_path, on_missing="skip") == {"a.jpg": "a boat"}


def test_table_row_without_image(tmp_path):
    image(tmp_path / "a.jpg")
    rows = [{"file_name": "a.jpg", "text": "a boat"}, {"file_name": "none.jpg", "text": "a ghost"}]
    jsonl(tmp_path / "metadata.jsonl", rows)
    error = read_error(tmp_path)
    assert error.what == f"1 of 2 images in {tmp_path}/ does not exist, the first is {tmp_path / 'none.jpg'}"
    assert read_captions(tmp_path, on_missing="skip") == {"a.jpg": "a boat"}


@pytest.mark.parametrize("typo", ["metadata.json1", "metadata.jsonI", "metadata.jsn"])
def test_misspelt_metadata_name(tmp_path, typo):
    image(tmp_path / "a.jpg")
    (tmp_path / typo).write_text('{"file_name": "a.jpg", "text": "a boat"}')
    assert read_error(tmp_path, on_missing="skip").hint == f"rename {tmp_path / typo} to metadata.jsonl"


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.json"])
def test_hint_to_pass_the_table_itself(tmp_path, name):
    image(tmp_path / "a.jpg")
    (tmp_path / name).write_text("{}")
    assert read_error(tmp_path).hint == f"pass {tmp_path / name} itself as the dataset"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.jpg.txt": "named after the file"}, "named after the file"),  # as some taggers write it
        ({"A.TXT": "another case"}, "another case"),
        ({"a.jpg.txt": "second", "a.txt": "first"}, "first"),
        ({"A.txt": "one", "A.caption": "two"}, "one"),
    ],
)
def test_names_of_caption_files(tmp_path, files, expected):
    image(tmp_path / "a.jpg")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert [sample.target for sample in resolve_dataset(tmp_path, DatasetOptions("caption")).samples] == [expected]


def test_a_caption_file_that_two_images_may_mean_is_not_guessed(tmp_path):
    for name in ("IMG.jpg", "Img.jpg"):
        image(tmp_path / name)
    (tmp_path / "img.txt").write_text("one of them")
    with pytest.raises(DatasetError, match="have no caption"):
        resolve_dataset(tmp_path, DatasetOptions("caption"))
