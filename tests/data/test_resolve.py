import pickle

import pytest

from florence2.data.resolve import resolve_dataset, resolve_images
from florence2.data.sample import ImageError, ResolvedDataset
from florence2.errors import UserError
from tests.data.images import captioned, image, jsonl


def found(spec, **options) -> ResolvedDataset:
    return resolve_images(spec, **{"task": "caption", **options})


def ids(spec, **options) -> list[str]:
    return [sample.id for sample in found(spec, **options).samples]


def refused(spec, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        found(spec, **options)
    assert "\n" not in caught.value.what + caught.value.hint
    return caught.value


# --- pictures to ask about ---------------------------------------------------------------------------------------


def test_one_image(tmp_path):
    path = image(tmp_path / "a.JPG")
    for spec in (path, str(path)):
        result = found(spec)
        (sample,) = result.samples
        assert (sample.id, sample.task, sample.input, sample.target) == ("a.JPG", "<CAPTION>", "", None)
        assert result.root == tmp_path
        assert sample.open().size == (20, 10)


def test_folder(tmp_path):
    for name in ("b.jpg", "a.png", "in/c.webp"):
        image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "broken.jpg").write_text("found all the same: it becomes a line with an error")
    assert ids(tmp_path) == ["a.png", "b.jpg", "broken.jpg"]
    assert ids(tmp_path, recursive=True) == ["a.png", "b.jpg", "broken.jpg", "in/c.webp"]
    assert found(tmp_path).root == tmp_path


def test_folder_without_images(tmp_path):
    assert refused(tmp_path).what == f"{tmp_path}/ holds no pictures"
    image(tmp_path / "in" / "a.jpg")
    assert refused(tmp_path).hint == f"name {tmp_path}/in/, or pass --recursive"


def test_pattern(tmp_path):
    for name in ("a1.jpg", "a2.JPG", "b1.jpg", "in/a3.jpg", "a4.txt"):
        image(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("")
    assert ids(f"{tmp_path}/a*") == ["a1.jpg", "a2.JPG"]
    assert ids(f"{tmp_path}/**/a*.jpg") == ["a1.jpg", "in/a3.jpg"]
    assert ids(f"{tmp_path}/i?/*.jpg") == ["in/a3.jpg"]
    assert found(f"{tmp_path}/i?/*.jpg").root == tmp_path
    assert refused(f"{tmp_path}/z*.jpg").what == f"no picture matches {tmp_path}/z*.jpg"


def test_names_that_look_like_patterns(tmp_path):
    assert ids(image(tmp_path / "a[1].jpg")) == ["a[1].jpg"]
    image(tmp_path / "[x]" / "a.jpg")
    assert ids(tmp_path / "[x]") == ["a.jpg"]


def test_list(tmp_path):
    image(tmp_path / "a.jpg", (1000, 500))
    rows = [
        {"file_name": "a.jpg"},
        {"image": "a.jpg", "task": "od"},
        {"image_path": "a.jpg", "prefix": "<OPEN_VOCABULARY_DETECTION>boat"},
        {"file_name": "a.jpg", "task": "region_to_ocr", "input": [0, 0, 1000, 250]},
        {"file_name": "gone.jpg", "prompt": "what is it?"},
    ]
    result = found(jsonl(tmp_path / "list.jsonl", rows), task="ocr")
    assert [sample.key for sample in result.samples] == [
        ("a.jpg", "<OCR>", ""),
        ("a.jpg", "<OD>", ""),
        ("a.jpg", "<OPEN_VOCABULARY_DETECTION>", "boat"),
        ("a.jpg", "<REGION_TO_OCR>", "<loc_0><loc_0><loc_999><loc_500>"),
        ("gone.jpg", "what is it?", ""),
    ]
    with pytest.raises(ImageError, match=r"gone\.jpg does not exist"):
        result.samples[-1].open()


def test_input_goes_with_the_task_of_the_command(tmp_path):
    image(tmp_path / "a.jpg")
    path = jsonl(tmp_path / "list.jsonl", [{"file_name": "a.jpg"}, {"file_name": "a.jpg", "task": "ocr"}])
    keys = [s.key for s in found(path, task="open_vocabulary_detection", input="boat").samples]
    assert keys == [("a.jpg", "<OPEN_VOCABULARY_DETECTION>", "boat"), ("a.jpg", "<OCR>", "")]
    for options in (
        {"task": "<OPEN_VOCABULARY_DETECTION>boat"},
        {"task": "open_vocabulary_detection", "input": "boat"},
    ):
        for spec in (tmp_path, tmp_path / "a.jpg", f"{tmp_path}/*.jpg"):
            assert [s.key for s in found(spec, **options).samples] == [("a.jpg", "<OPEN_VOCABULARY_DETECTION>", "boat")]


def test_a_question_that_is_listed_twice_is_asked_once(tmp_path):
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    rows = [{"file_name": name, "text": str(n)} for n, name in enumerate(["b.jpg", "a.jpg", "b.jpg"])]
    assert ids(jsonl(tmp_path / "list.jsonl", rows)) == ["b.jpg", "a.jpg"]


def test_failed_predictions_can_be_asked_again(tmp_path):
    image(tmp_path / "a.jpg")
    assert ids(jsonl(tmp_path / "list.jsonl", [{"file_name": "a.jpg", "error": "out of memory"}])) == ["a.jpg"]


def test_region_of_an_unreadable_image_fails_when_it_is_opened(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    row = {"file_name": "bad.jpg", "task": "region_to_ocr", "input": [0, 0, 1, 1]}
    (sample,) = found(jsonl(tmp_path / "list.jsonl", [row])).samples
    assert sample.task == "<REGION_TO_OCR>"
    with pytest.raises(ImageError):
        sample.open()


def test_list_that_leads_out_of_its_folder(tmp_path):
    image(tmp_path / "secret.jpg")
    path = jsonl(tmp_path / "in" / "list.jsonl", [{"file_name": "../secret.jpg"}])
    assert "leads out of" in refused(path).what
    assert ids(jsonl(path, [{"file_name": "secret.jpg"}]), dataset_dir=tmp_path) == ["secret.jpg"]


@pytest.mark.parametrize("name", ["notes.pdf", "notes", "notes.txt"])
def test_neither_image_nor_list(tmp_path, name):
    (tmp_path / name).write_text("hello")
    assert refused(tmp_path / name).what == f"{tmp_path / name} is not a picture, nor a list of pictures"


def test_nothing_there(tmp_path):
    image(tmp_path / "photos" / "holiday.jpg")
    assert refused(tmp_path / "photos" / "holidy.jpg").hint == f"did you mean {tmp_path / 'photos' / 'holiday.jpg'}"
    assert refused(tmp_path / "photo").hint == f"did you mean {tmp_path / 'photos'}"
    error = refused(tmp_path / "far" / "away.jpg")
    assert (error.what, error.hint) == (f"{tmp_path / 'far' / 'away.jpg'} does not exist", "")


def test_samples_travel_to_worker_processes(tmp_path):
    (sample,) = pickle.loads(pickle.dumps(found(image(tmp_path / "a.jpg")).samples))
    assert sample.open().size == (20, 10)


# --- names of datasets -------------------------------------------------------------------------------------------


def no_dataset(spec, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        resolve_dataset(spec, task="caption", **options)
    assert "\n" not in caught.value.what + caught.value.hint
    return caught.value


def test_an_image_is_no_dataset(tmp_path):
    path = image(tmp_path / "a.jpg")
    error = no_dataset(path)
    assert (error.what, error.hint) == (f"{path} is one picture, not a dataset", f"name its folder, {tmp_path}/")


def test_a_text_is_no_dataset(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    assert no_dataset(tmp_path / "a.txt").what == f"{tmp_path / 'a.txt'} is not a dataset"


@pytest.mark.parametrize(
    "spec", ["none/such/folder", "./none", "/none", "captions.jsonl", "a/b.parquet", "photos/none", "a b", "a:b/c"]
)
def test_paths_are_not_looked_for_on_the_hub(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    captioned(tmp_path / "photos" / "a.jpg", "a boat")
    assert no_dataset(spec).what.endswith("does not exist")


@pytest.mark.parametrize("spec", ["someone/photos", "cats", "someone/photos:train"])
def test_names_are_looked_for_on_the_hub(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    error = no_dataset(spec, offline=True)
    name = spec.partition(":")[0]
    assert error.what == f"`{name}` is no file or folder here, and as a dataset of the hub it was not downloaded before"
    assert error.hint == "check the spelling, or leave --offline out once"


def test_offline_is_over_afterwards():
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    no_dataset("someone/photos", offline=True)
    assert before == datasets.config.HF_HUB_OFFLINE


def test_offline_by_the_environment(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets
    assert "was not downloaded before" in no_dataset("someone/photos").what


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    captioned(tmp_path / "photos" / "a.jpg", "a boat")
    assert [s.target for s in resolve_dataset("~/photos", task="caption").samples] == ["a boat"]
    assert ids("~/photos") == ["a.jpg"]
