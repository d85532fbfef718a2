"""Names of images that another machine or program wrote."""

import unicodedata

import pytest

from florence2.data.folders.image_locator import confine_to
from florence2.data.resolve import DatasetOptions, resolve_dataset, resolve_images
from florence2.errors import DatasetError
from tests.data.images import image, jsonl


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("café.png", nfd("café.png")),  # a list from a Mac
        (nfd("café.png"), "café.png"),  # files from a Mac
        (nfd("café") + "/a.png", "café/a.png"),  # a folder from a Mac
        ("in/a.png", "in\\a.png"),  # a path of Windows
        ("my cat.png", "my%20cat.png"),  # a path as URL
        ("100%.png", "100%.png"),  # a percent sign in the file name
        ("In/A.PNG", "in/a.png"),  # letters in another case
        ("in/a.png", "/home/me/data/in/a.png"),  # an absolute path of another machine
        ("in/a.png", "C:\\data\\in\\a.png"),  # an absolute path of Windows
        ("in/a.png", "\\\\server\\share\\in\\a.png"),  # a share of Windows
        ("in/a.png", "\\\\?\\C:\\data\\in\\a.png"),  # a long path of Windows
        ("a.png", "C:\\data\\in\\a.png"),  # an absolute path of Windows, files without folders
    ],
)
def test_name_of_another_machine_matches_the_file(tmp_path, file, name):
    image(tmp_path / file)
    path = jsonl(tmp_path / "x.jsonl", [{"file_name": name, "text": "a cat"}])
    (sample,) = resolve_dataset(path, DatasetOptions("caption")).samples
    assert (sample.id, sample.image) == (file, tmp_path / file)


def test_name_that_several_files_match_is_absent(tmp_path):
    image(tmp_path / "A.png")
    image(tmp_path / "a.PNG")
    locate = confine_to(tmp_path, "")
    assert locate("A.png", "row").exists
    assert not locate("a.png", "row").exists


def test_absolute_paths_that_match_one_file_are_rejected(tmp_path):
    image(tmp_path / "1.png")
    locate = confine_to(tmp_path, "")
    assert locate("/data/train/1.png", "row 1").exists
    with pytest.raises(DatasetError, match=r"row 2: `/data/val/1.png` and `/data/train/1.png` both match"):
        locate("/data/val/1.png", "row 2")


def test_hint_of_predict_names_no_option_that_it_lacks(tmp_path):
    image(tmp_path / "images" / "b.png")
    path = jsonl(tmp_path / "lists" / "x.jsonl", [{"file_name": str(tmp_path / "images" / "b.png")}])
    with pytest.raises(DatasetError, match="is outside") as caught:
        resolve_images(path, task="caption")
    assert caught.value.hint == "move the table into a folder above its images"
    with pytest.raises(DatasetError, match="is outside") as caught:
        resolve_dataset(path, DatasetOptions("caption"))
    assert "--dataset_dir" in caught.value.hint
