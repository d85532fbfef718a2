import pickle
import shutil

import datasets
import pytest
from PIL import Image

from florence2.data.hub import is_hub_id
from florence2.data.resolve import resolve_dataset, resolve_images
from florence2.data.sample import ImageError, ResolvedDataset, SkipReason
from florence2.errors import UserError
from tests.data.images import image


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def made(**columns) -> datasets.Dataset:
    columns = {"image": [Image.new("RGB", (20, 10), (n, 0, 0)) for n in range(3)], **columns}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def found(spec, **options) -> ResolvedDataset:
    return resolve_dataset(spec, **{"task": "caption", **options})


def refused(spec, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        found(spec, **options)
    assert "\n" not in caught.value.what + caught.value.hint
    return caught.value


def saved(path, dataset):
    dataset.save_to_disk(path)
    return path


def test_saved_dataset(tmp_path):
    path = saved(tmp_path / "d", made(text=["a", "b", "c"]))
    result = found(path)
    assert [(s.id, s.task, s.target) for s in result.samples] == [
        ("row/0", "<CAPTION>", "a"),
        ("row/1", "<CAPTION>", "b"),
        ("row/2", "<CAPTION>", "c"),
    ]
    assert result.root is None
    assert [s.open().image.getpixel((0, 0)) for s in result.samples] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert [s.size() for s in result.samples] == [(20, 10)] * 3


def test_samples_of_a_dataset_travel_to_worker_processes(tmp_path):
    samples = found(saved(tmp_path / "d", made(text=["a", "b", "c"]))).samples
    data = pickle.dumps(samples)
    assert pickle.loads(data)[2].open().image.getpixel((0, 0)) == (2, 0, 0)
    assert len(data) < 20_000  # the table goes along once, or as a path


def test_columns_by_flag_and_by_row(tmp_path):
    rows = {"words": ["a", "", None], "prefix": ["<OD>", "<OCR>", "what?"], "text": ["no", "no", "no"]}
    path = saved(tmp_path / "d", made(**rows).rename_column("image", "pic"))
    result = found(path, text_column="words", image_column="pic", missing="skip")
    assert [(s.task, s.target) for s in result.samples] == [("<OD>", "a")]
    assert [(s.id, s.reason) for s in result.skipped] == [
        ("row/1", SkipReason.NO_CAPTION),
        ("row/2", SkipReason.NO_CAPTION),
    ]
    assert found(path).samples[2].task == "what?"
    assert refused(path, text_column="words").what == (
        f"2 of 3 pictures in {path} have no caption, the first is {path} row/1"
    )


def test_structured_answers_in_a_dataset(tmp_path):
    answers = [{"bboxes": [[0, 0, 10, 5]], "labels": ["boat"]}] * 3
    path = saved(tmp_path / "d", made(answer=answers, task=["od"] * 3))
    assert found(path).samples[0].target == "boat<loc_0><loc_0><loc_500><loc_500>"


def test_splits(tmp_path):
    parts = {"train": made(text=["a", "b", "c"]), "test": made(text=["d", "e", "f"])}
    path = saved(tmp_path / "d", datasets.DatasetDict(parts))
    assert [s.target for s in found(path).samples] == ["a", "b", "c"]
    assert [s.target for s in found(path, split="test").samples] == ["d", "e", "f"]
    assert [s.target for s in found(f"{path}:test").samples] == ["d", "e", "f"]
    error = refused(path, split="valid")
    assert error.what == f"dataset `{path}` has no split `valid`; it has `train`, `test`"
    without = saved(tmp_path / "e", datasets.DatasetDict({"x": parts["train"], "y": parts["test"]}))
    assert "several splits and no `train`" in refused(without).what
    assert refused(without).hint == f"name one, as in {without}:x"


def test_columns_that_are_not_there(tmp_path):
    path = saved(tmp_path / "d", made(label=[1, 2, 3]))
    error = refused(path)
    assert error.what == f"dataset `{path}` has no column of captions; it has `image`, `label`"
    assert error.hint == "name it with --text_column"
    assert "no column `words`" in refused(path, text_column="words").what
    error = refused(path, image_column="label")
    assert error.what.startswith(f"dataset `{path}` has no column `label` with pictures; it has `image` (Image), ")
    plain = saved(tmp_path / "e", datasets.Dataset.from_dict({"text": ["a"]}))
    assert refused(plain).what == f"dataset `{plain}` has no column of pictures; it has `text` (Value)"


def test_images_that_a_dataset_lacks_or_garbles(tmp_path):
    images = [{"bytes": b"junk", "path": None}, None]
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict({"image": images, "text": ["a", "b"]}, features=features)
    for sample, words in zip(
        found(saved(tmp_path / "d", dataset)).samples,
        ("row/0 is not a picture that can be read", "row/1 holds no picture"),
        strict=True,
    ):
        with pytest.raises(ImageError, match=words):
            sample.open()


def test_damaged_dataset(tmp_path):
    path = saved(tmp_path / "d", made(text=["a", "b", "c"]))
    for arrow in path.glob("*.arrow"):
        arrow.write_bytes(b"junk")
    assert refused(path).what.startswith(f"{path} is no dataset that can be read: ")


def test_parquet_that_holds_its_images(tmp_path):
    path = tmp_path / "d.parquet"
    made(caption=["a", "b", "c"]).to_parquet(path)
    result = found(path)
    assert [s.target for s in result.samples] == ["a", "b", "c"]
    assert result.samples[1].open().image.getpixel((0, 0)) == (1, 0, 0)
    assert [s.target for s in resolve_images(path, task="ocr").samples] == [None] * 3


def test_a_dataset_that_was_downloaded_before(tmp_path, monkeypatch):
    """A folder of the cache, as the hub's loader leaves it, is found by its name without a hub."""
    source = tmp_path / "source"
    image(source / "a.jpg")
    (source / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "a boat"}')
    datasets.load_dataset("imagefolder", data_dir=str(source), cache_dir=str(tmp_path / "cache"))
    (info,) = (tmp_path / "cache" / "imagefolder").glob("*/*/*/dataset_info.json")
    info.write_text(info.read_text().replace(info.parts[-4], "default"))
    stored = tmp_path / "cache" / "someone___photos" / "default" / "0.0.0" / info.parent.name
    shutil.copytree(info.parent, stored)
    (stored / "imagefolder-train.arrow").rename(stored / "photos-train.arrow")
    monkeypatch.chdir(tmp_path)
    result = found("someone/photos", offline=True)
    assert [(s.id, s.target) for s in result.samples] == [("train/0", "a boat")]
    assert result.samples[0].open().size == (20, 10)
    assert [s.target for s in found("someone/photos:train[:1]", offline=True).samples] == ["a boat"]
    assert refused("someone/photos:x", offline=True).what.startswith("dataset `someone/photos` has no split `x`")
    assert "cannot be chosen" in refused("someone/photos", offline=True, revision="main").what


@pytest.mark.parametrize(
    ("name", "could_be"),
    [("someone/photos", True), ("cifar10", True), ("a/b/c", False), ("../a", False), ("/a", False), ("a b", False)],
)
def test_names_of_the_hub(name, could_be):
    assert is_hub_id(name) == could_be
