import pickle

import pytest

from florence2.data.resolve import DatasetOptions, resolve_dataset, resolve_images
from florence2.data.sample import ImageError, ResolvedDataset
from florence2.errors import DatasetError
from tests.data.formats.annotation_files import coco
from tests.data.images import captioned, image, jsonl


def resolve(spec, **options) -> ResolvedDataset:
    return resolve_images(spec, **{"task": "caption", **options})


def ids(spec, **options) -> list[str]:
    return [sample.id for sample in resolve(spec, **options).samples]


def resolve_error(spec, **options) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        resolve(spec, **options)
    assert "\n" not in caught.value.what + caught.value.hint
    return caught.value


# --- images to predict -----------------------------------------------------------------------------------------------


def test_single_image(tmp_path):
    path = image(tmp_path / "a.JPG")
    for spec in (path, str(path)):
        result = resolve(spec)
        (sample,) = result.samples
        assert (sample.id, sample.task, sample.input, sample.target) == ("a.JPG", "<CAPTION>", "", None)
        assert result.root == tmp_path
        assert sample.open().size == (20, 10)


def test_images_of_a_folder(tmp_path):
    for name in ("b.jpg", "a.png", "in/c.webp"):
        image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "broken.jpg").write_text("listed all the same: its prediction has an error")
    assert ids(tmp_path) == ["a.png", "b.jpg", "broken.jpg"]
    assert ids(tmp_path, recursive=True) == ["a.png", "b.jpg", "broken.jpg", "in/c.webp"]
    assert resolve(tmp_path).root == tmp_path


def test_folder_without_images(tmp_path):
    assert resolve_error(tmp_path).what == f"{tmp_path}/ contains no images"
    image(tmp_path / "in" / "a.jpg")
    assert resolve_error(tmp_path).hint == f"pass {tmp_path}/in/, or pass --recursive"


def test_glob_pattern(tmp_path):
    for name in ("a1.jpg", "a2.JPG", "b1.jpg", "in/a3.jpg", "a4.txt"):
        image(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("")
    assert ids(f"{tmp_path}/a*") == ["a1.jpg", "a2.JPG"]
    assert ids(f"{tmp_path}/**/a*.jpg") == ["a1.jpg", "in/a3.jpg"]
    assert ids(f"{tmp_path}/i?/*.jpg") == ["in/a3.jpg"]
    assert resolve(f"{tmp_path}/i?/*.jpg").root == tmp_path
    assert resolve_error(f"{tmp_path}/z*.jpg").what == f"no image matches {tmp_path}/z*.jpg"


def test_names_with_glob_characters(tmp_path):
    assert ids(image(tmp_path / "a[1].jpg")) == ["a[1].jpg"]
    image(tmp_path / "[x]" / "a.jpg")
    assert ids(tmp_path / "[x]") == ["a.jpg"]


def test_rows_of_a_table(tmp_path):
    image(tmp_path / "a.jpg", (1000, 500))
    rows = [
        {"file_name": "a.jpg"},
        {"image": "a.jpg", "task": "od"},
        {"image_path": "a.jpg", "prefix": "<OPEN_VOCABULARY_DETECTION>boat"},
        {"file_name": "a.jpg", "task": "region_to_ocr", "input": [0, 0, 1000, 250]},
        {"file_name": "gone.jpg", "prompt": "what is it?"},
    ]
    result = resolve(jsonl(tmp_path / "list.jsonl", rows), task="ocr")
    assert [sample.key for sample in result.samples] == [
        ("a.jpg", "<OCR>", ""),
        ("a.jpg", "<OD>", ""),
        ("a.jpg", "<OPEN_VOCABULARY_DETECTION>", "boat"),
        ("a.jpg", "<REGION_TO_OCR>", "<loc_0><loc_0><loc_999><loc_500>"),
        ("gone.jpg", "what is it?", ""),
    ]
    with pytest.raises(ImageError, match=r"gone\.jpg does not exist"):
        result.samples[-1].open()


def test_input_belongs_to_the_default_task(tmp_path):
    image(tmp_path / "a.jpg")
    path = jsonl(tmp_path / "list.jsonl", [{"file_name": "a.jpg"}, {"file_name": "a.jpg", "task": "ocr"}])
    keys = [s.key for s in resolve(path, task="open_vocabulary_detection", input="boat").samples]
    assert keys == [("a.jpg", "<OPEN_VOCABULARY_DETECTION>", "boat"), ("a.jpg", "<OCR>", "")]
    for options in (
        {"task": "<OPEN_VOCABULARY_DETECTION>boat"},
        {"task": "open_vocabulary_detection", "input": "boat"},
    ):
        for spec in (tmp_path, tmp_path / "a.jpg", f"{tmp_path}/*.jpg"):
            assert [s.key for s in resolve(spec, **options).samples] == [
                ("a.jpg", "<OPEN_VOCABULARY_DETECTION>", "boat")
            ]


def test_duplicate_rows_become_one_sample(tmp_path):
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    rows = [{"file_name": name, "text": str(n)} for n, name in enumerate(["b.jpg", "a.jpg", "b.jpg"])]
    assert ids(jsonl(tmp_path / "list.jsonl", rows)) == ["b.jpg", "a.jpg"]


def test_failed_predictions_are_resolved_again(tmp_path):
    image(tmp_path / "a.jpg")
    assert ids(jsonl(tmp_path / "list.jsonl", [{"file_name": "a.jpg", "error": "out of memory"}])) == ["a.jpg"]


def test_region_of_an_unreadable_image_raises_when_opened(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    row = {"file_name": "bad.jpg", "task": "region_to_ocr", "input": [0, 0, 1, 1]}
    (sample,) = resolve(jsonl(tmp_path / "list.jsonl", [row])).samples
    assert sample.task == "<REGION_TO_OCR>"
    with pytest.raises(ImageError):
        sample.open()


def test_image_outside_the_folder_is_rejected_unless_dataset_dir_contains_it(tmp_path):
    image(tmp_path / "secret.jpg")
    path = jsonl(tmp_path / "in" / "list.jsonl", [{"file_name": "../secret.jpg"}])
    assert "is outside" in resolve_error(path).what
    assert ids(jsonl(path, [{"file_name": "secret.jpg"}]), dataset_dir=tmp_path) == ["secret.jpg"]


@pytest.mark.parametrize("name", ["notes.pdf", "notes", "notes.txt"])
def test_neither_image_nor_list(tmp_path, name):
    (tmp_path / name).write_text("hello")
    assert resolve_error(tmp_path / name).what == f"{tmp_path / name} is not an image or a table of images"


def test_absent_path_is_named_with_a_suggestion(tmp_path):
    image(tmp_path / "photos" / "holiday.jpg")
    assert (
        resolve_error(tmp_path / "photos" / "holidy.jpg").hint == f"did you mean {tmp_path / 'photos' / 'holiday.jpg'}"
    )
    assert resolve_error(tmp_path / "photo").hint == f"did you mean {tmp_path / 'photos'}"
    error = resolve_error(tmp_path / "far" / "away.jpg")
    assert (error.what, error.hint) == (f"{tmp_path / 'far' / 'away.jpg'} does not exist", "")


def test_samples_can_be_pickled(tmp_path):
    (sample,) = pickle.loads(pickle.dumps(resolve(image(tmp_path / "a.jpg")).samples))
    assert sample.open().size == (20, 10)


# --- dataset names ---------------------------------------------------------------------------------------------------


def dataset_error(spec, **options) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        resolve_dataset(spec, DatasetOptions("caption", **options))
    assert "\n" not in caught.value.what + caught.value.hint
    return caught.value


def test_image_is_not_a_dataset(tmp_path):
    path = image(tmp_path / "a.jpg")
    error = dataset_error(path)
    assert (error.what, error.hint) == (f"{path} is one image, not a dataset", f"pass its folder, {tmp_path}/")


def test_text_file_is_not_a_dataset(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    assert dataset_error(tmp_path / "a.txt").what == f"{tmp_path / 'a.txt'} is not a dataset"


@pytest.mark.parametrize(
    "spec", ["none/such/folder", "./none", "/none", "captions.jsonl", "a/b.parquet", "photos/none", "a b", "a:b/c"]
)
def test_paths_are_not_hub_ids(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    captioned(tmp_path / "photos" / "a.jpg", "a boat")
    assert dataset_error(spec).what.endswith("does not exist")


@pytest.mark.parametrize("spec", ["someone/photos", "cats", "someone/photos:train"])
def test_names_are_hub_ids(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    error = dataset_error(spec, offline=True)
    name = spec.partition(":")[0]
    assert error.what == f"`{name}` is not a local file or folder, and as a dataset on the hub it is not in the cache"
    assert error.hint == "check the spelling, or run once without --offline"


def test_offline_is_restored():
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    dataset_error("someone/photos", offline=True)
    assert before == datasets.config.HF_HUB_OFFLINE


def test_offline_by_environment_variable(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets
    assert "is not in the cache" in dataset_error("someone/photos").what


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    captioned(tmp_path / "photos" / "a.jpg", "a boat")
    assert [s.target for s in resolve_dataset("~/photos", DatasetOptions("caption")).samples] == ["a boat"]
    assert ids("~/photos") == ["a.jpg"]


def test_annotations_are_no_list_of_images_to_predict(tmp_path):
    image(tmp_path / "0.png", (200, 100))
    path = coco(tmp_path / "x.json", [{"bbox": [10, 10, 20, 20]}])
    with pytest.raises(DatasetError, match="has annotations, and is no list of images") as caught:
        resolve_images(path, task="od")
    assert caught.value.hint == "pass the folder of the images"
