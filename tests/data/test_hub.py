import json
import pickle
import shutil

import datasets
import pytest
from PIL import Image

from florence2.api import check_dataset, convert_dataset
from florence2.data.columns import ColumnMapping
from florence2.data.hub import is_hub_id
from florence2.data.resolve import DatasetOptions, resolve_dataset, resolve_images
from florence2.data.sample import ImageError, ResolvedDataset, SkipReason
from florence2.data.streams.open_source import find_sharded_source as find_streamed_source
from florence2.errors import UserError
from tests.data.images import image


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def make_dataset(**columns) -> datasets.Dataset:
    columns = {"image": [Image.new("RGB", (20, 10), (n, 0, 0)) for n in range(3)], **columns}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def resolve(spec, **options) -> ResolvedDataset:
    return resolve_dataset(spec, DatasetOptions(**{"task": "caption", **options}))


def read_error(spec, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        resolve(spec, **options)
    assert "\n" not in caught.value.what + caught.value.hint
    return caught.value


def save(path, dataset):
    dataset.save_to_disk(path)
    return path


def test_saved_dataset(tmp_path):
    path = save(tmp_path / "d", make_dataset(text=["a", "b", "c"]))
    result = resolve(path)
    assert [(s.id, s.task, s.target) for s in result.samples] == [
        ("row/0", "<CAPTION>", "a"),
        ("row/1", "<CAPTION>", "b"),
        ("row/2", "<CAPTION>", "c"),
    ]
    assert result.root is None
    assert [s.open().image.getpixel((0, 0)) for s in result.samples] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert [s.size() for s in result.samples] == [(20, 10)] * 3


def test_samples_can_be_pickled(tmp_path):
    samples = resolve(save(tmp_path / "d", make_dataset(text=["a", "b", "c"]))).samples
    data = pickle.dumps(samples)
    assert pickle.loads(data)[2].open().image.getpixel((0, 0)) == (2, 0, 0)
    assert len(data) < 20_000  # the table is pickled once, or as a path


def test_columns_by_option_and_by_row(tmp_path):
    rows = {"words": ["a", "", None], "prefix": ["<OD>", "<OCR>", "what?"], "text": ["no", "no", "no"]}
    path = save(tmp_path / "d", make_dataset(**rows).rename_column("image", "pic"))
    result = resolve(path, text_column="words", image_column="pic", on_missing="skip")
    assert [(s.task, s.target) for s in result.samples] == [("<OD>", "a")]
    assert [(s.id, s.reason) for s in result.skipped] == [
        ("row/1", SkipReason.NO_CAPTION),
        ("row/2", SkipReason.NO_CAPTION),
    ]
    assert resolve(path).samples[2].task == "what?"
    assert read_error(path, text_column="words").what == (
        f"2 of 3 images in {path} have no caption, the first is {path} row/1"
    )


def test_structured_answers_in_a_dataset(tmp_path):
    answers = [{"bboxes": [[0, 0, 10, 5]], "labels": ["boat"]}] * 3
    path = save(tmp_path / "d", make_dataset(answer=answers, task=["od"] * 3))
    assert resolve(path).samples[0].target == "boat<loc_0><loc_0><loc_500><loc_500>"


def test_objects_of_a_dataset_convert_to_positions(tmp_path):
    names = datasets.Sequence(datasets.ClassLabel(names=["cat", "dog"]))
    features = {"bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))), "category": names}
    objects = [{"bbox": [[1, 2, 3.5, 4]], "category": [1]}, {"bbox": [], "category": []}, {"bbox": None}]
    made = make_dataset(objects=objects, license=["x"] * 3)
    made = made.cast_column("objects", features)
    save(tmp_path / "d", made)
    made.to_parquet(tmp_path / "d.parquet")
    for number, spec in enumerate((tmp_path / "d", tmp_path / "d.parquet")):
        output = tmp_path / f"out{number}"
        result = convert_dataset(dataset=str(spec), output=str(output))
        rows = [json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines()]
        assert [row["answer"] for row in rows] == [
            {"bboxes": [[1, 2, 4.5, 6]], "labels": ["dog"]},
            {"bboxes": [], "labels": []},
        ]
        assert result.skipped["values of the column `license`"] == 3
        report = check_dataset(dataset=str(spec)).to_json()
        assert (report["objects"], report["unread_columns"]) == ({"dog": 1}, {"license": 3})
        assert report["issue_counts"] == {"malformed": 1}
        assert resolve(spec, on_missing="skip").samples[0].target == "dog<loc_50><loc_200><loc_225><loc_600>"


def test_splits(tmp_path):
    parts = {"train": make_dataset(text=["a", "b", "c"]), "test": make_dataset(text=["d", "e", "f"])}
    path = save(tmp_path / "d", datasets.DatasetDict(parts))
    assert [s.target for s in resolve(path).samples] == ["a", "b", "c"]
    assert [s.target for s in resolve(path, split="test").samples] == ["d", "e", "f"]
    assert [s.target for s in resolve(f"{path}:test").samples] == ["d", "e", "f"]
    error = read_error(path, split="valid")
    assert error.what == f"dataset `{path}` has no split `valid`; it has `train`, `test`"
    without = save(tmp_path / "e", datasets.DatasetDict({"x": parts["train"], "y": parts["test"]}))
    assert "several splits and no `train`" in read_error(without).what
    assert read_error(without).hint == f"pass one, as in {without}:x"


def test_missing_columns_are_named(tmp_path):
    path = save(tmp_path / "d", make_dataset(label=[1, 2, 3]))
    error = read_error(path)
    assert error.what == f"dataset `{path}` has no column of captions; it has `image`, `label`"
    assert error.hint == "pass its name as --text_column"
    assert "no column `words`" in read_error(path, text_column="words").what
    error = read_error(path, image_column="label")
    assert error.what.startswith(f"dataset `{path}` has no column `label` of images; it has `image` (Image), ")
    plain = save(tmp_path / "e", datasets.Dataset.from_dict({"text": ["a"]}))
    assert read_error(plain).what == f"dataset `{plain}` has no column of images; it has `text` (Value)"


def test_missing_and_damaged_images(tmp_path):
    images = [{"bytes": b"junk", "path": None}, None]
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict({"image": images, "text": ["a", "b"]}, features=features)
    for sample, words in zip(
        resolve(save(tmp_path / "d", dataset)).samples,
        ("row/0 is not an image that can be read", "row/1 has no image"),
        strict=True,
    ):
        with pytest.raises(ImageError, match=words):
            sample.open()


def test_damaged_dataset_is_named(tmp_path):
    path = save(tmp_path / "d", make_dataset(text=["a", "b", "c"]))
    for arrow in path.glob("*.arrow"):
        arrow.write_bytes(b"junk")
    assert read_error(path).what.startswith(f"{path} is not a dataset that can be read: ")


def test_parquet_with_its_images(tmp_path):
    path = tmp_path / "d.parquet"
    make_dataset(caption=["a", "b", "c"]).to_parquet(path)
    result = resolve(path)
    assert [s.target for s in result.samples] == ["a", "b", "c"]
    assert result.samples[1].open().image.getpixel((0, 0)) == (1, 0, 0)
    assert [s.target for s in resolve_images(path, task="ocr").samples] == [None] * 3


def write_parquet(path, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_a_list_of_one_image_is_that_image(tmp_path):
    """TRL's and other rows have their images in a list."""
    encoded = {"bytes": image(tmp_path / "a.png").read_bytes(), "path": None}
    chat = [{"role": "user", "content": "Describe"}, {"role": "assistant", "content": "a red square"}]
    path = write_parquet(tmp_path / "x.parquet", images=[[encoded], [encoded] * 2], messages=[chat, chat])
    datasets.Dataset.from_parquet(str(path)).save_to_disk(tmp_path / "saved")
    for spec in (path, tmp_path / "saved"):
        dataset = resolve(spec)
        assert [(sample.task, sample.target) for sample in dataset.samples] == [("Describe", "a red square")] * 2
        assert dataset.samples[0].size() == (20, 10)
        with pytest.raises(ImageError, match="has 2 images"):
            dataset.samples[1].size()
        source = find_streamed_source(str(spec), ColumnMapping("caption"))
        first, second = (sample for index in range(source.num_shards) for sample in source.read(index))
        assert first.size() == (20, 10)
        with pytest.raises(ImageError, match="has 2 images"):
            second.size()


def test_the_column_named_as_an_image_comes_before_masks(tmp_path):
    encoded = [image(tmp_path / name, size).read_bytes() for name, size in (("a.png", (20, 10)), ("b.png", (9, 9)))]
    path = write_parquet(tmp_path / "x.parquet", mask=encoded[1:], image=encoded[:1], text=["a"])
    dataset = resolve(path)
    assert dataset.samples[0].size() == (20, 10)
    assert dataset.unread_columns == {"mask": 1}


def test_a_downloaded_dataset_of_the_hub(tmp_path):
    encoded = image(tmp_path / "a.png").read_bytes()
    for split in ("train", "test"):
        for number in range(2):
            name = f"{split}-0000{number}-of-00002.parquet"
            write_parquet(tmp_path / "ds" / "data" / name, image=[encoded], text=[f"{split} {number}"])
    (tmp_path / "ds" / "README.md").write_text("# a dataset\n")
    assert [sample.target for sample in resolve(tmp_path / "ds").samples] == ["train 0", "train 1"]
    assert [sample.target for sample in resolve(f"{tmp_path}/ds:test").samples] == ["test 0", "test 1"]
    assert check_dataset(dataset=str(tmp_path / "ds")).num_samples == 2
    assert len(resolve_images(tmp_path / "ds", task="caption").samples) == 2


def test_dataset_in_the_cache(tmp_path, monkeypatch):
    """A dataset that `datasets` downloaded into its cache is found offline by its name."""
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
    result = resolve("someone/photos", offline=True)
    assert [(s.id, s.target) for s in result.samples] == [("train/0", "a boat")]
    assert result.samples[0].open().size == (20, 10)
    assert [s.target for s in resolve("someone/photos:train[:1]", offline=True).samples] == ["a boat"]
    assert read_error("someone/photos:x", offline=True).what.startswith("dataset `someone/photos` has no split `x`")
    assert "cannot be chosen" in read_error("someone/photos", offline=True, revision="main").what


@pytest.mark.parametrize(
    ("name", "is_id"),
    [("someone/photos", True), ("cifar10", True), ("a/b/c", False), ("../a", False), ("/a", False), ("a b", False)],
)
def test_hub_ids(name, is_id):
    assert is_hub_id(name) == is_id
