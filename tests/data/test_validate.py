import pytest
from PIL import Image

from florence2.api import check_dataset
from florence2.data.decoding.image_decoders import ImageDecoders
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.sample import ResolvedDataset, Sample, Skipped, SkipReason
from florence2.data.validate import check_images, raise_on_skipped, train_val_split
from florence2.errors import DatasetError
from tests.data.images import captioned, image, jsonl


@pytest.fixture
def photos(tmp_path):
    for n in range(5):
        captioned(tmp_path / f"{n}.jpg", f"boat {n}")
    return tmp_path


def resolve(spec) -> ResolvedDataset:
    return resolve_dataset(spec, DatasetOptions("caption"))


def damage(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_readable_images_pass(photos):
    before = resolve(photos)
    assert [s.id for s in check_images(before).samples] == [s.id for s in before.samples]


def test_unreadable_images_are_counted_and_named(photos):
    damage(photos / "1.jpg")
    (photos / "3.jpg").write_bytes(b"junk")
    with pytest.raises(DatasetError) as caught:
        check_images(resolve(photos))
    assert caught.value.what.startswith(f"2 of 5 images in {photos}/ cannot be read, the first: {photos / '1.jpg'} ")
    assert caught.value.hint == "pass --on_missing skip to skip such images"
    rest = check_images(resolve(photos), on_missing="skip")
    assert [s.id for s in rest.samples] == ["0.jpg", "2.jpg", "4.jpg"]
    assert [(s.id, s.reason) for s in rest.skipped] == [
        ("1.jpg", SkipReason.UNREADABLE),
        ("3.jpg", SkipReason.UNREADABLE),
    ]


def damage_middle(path):
    """Overwrite the pixels of a JPEG, but neither its header nor its end."""
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xda") + 14
    data[start:-2] = b"\xff\xda" * ((len(data) - start - 2) // 2)
    path.write_bytes(data)


FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("in_memory", [False, True])
def test_truncated_images_of_every_format_are_found(tmp_path, name, in_memory):
    path = tmp_path / f"a{FORMATS[name]}"
    Image.effect_noise((200, 150), 60).convert("RGB").save(path, name)
    for length in (len(path.read_bytes()), -1, -40):
        data = path.read_bytes()[: length if length < 0 else None]
        (tmp_path / f"b{FORMATS[name]}").write_bytes(data)
        sample = Sample("b", data if in_memory else tmp_path / f"b{FORMATS[name]}", "<CAPTION>", target="x")
        dataset = ResolvedDataset("x", None, [sample])
        try:
            sample.open(min_size=(1, 1))
        except DatasetError:
            with pytest.raises(DatasetError):
                check_images(dataset)
        else:
            assert check_images(dataset).samples == [sample]
            check_images(dataset, decode_all=True)


def test_images_with_header_and_end_are_not_decoded(photos, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageDecoders, "decode", lambda _self, source, *_: decoded.append(source))
    check_images(resolve(photos))
    assert not decoded
    check_images(resolve(photos), decode_all=True)
    assert len(decoded) == 5


def test_damage_in_the_middle_is_found_by_decoding(photos):
    damage_middle(photos / "2.jpg")
    assert len(check_images(resolve(photos)).samples) == 5
    with pytest.raises(DatasetError, match=r"2\.jpg"):
        check_images(resolve(photos), decode_all=True)


def test_dataset_of_unreadable_images(tmp_path):
    captioned(tmp_path / "a.jpg", "a boat")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(DatasetError) as caught:
        check_images(resolve(tmp_path), on_missing="skip")
    assert caught.value.what == f"{tmp_path / 'a.jpg'} is not an image that can be read"


def test_each_image_is_opened_once(tmp_path):
    image(tmp_path / "a.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    rows = [{"file_name": name, "task": t, "text": "x"} for name in ("bad.jpg", "a.jpg") for t in ("ocr", "caption")]
    progress = []
    rest = check_images(resolve(jsonl(tmp_path / "list.jsonl", rows)), on_missing="skip", progress=progress.append)
    assert progress == [1, 2]
    assert [s.key for s in rest.samples] == [("a.jpg", "<OCR>", ""), ("a.jpg", "<CAPTION>", "")]
    assert [s.id for s in rest.skipped] == ["bad.jpg"]
    assert rest.num_images == 2


def test_images_are_checked_in_chunks(photos, monkeypatch):
    monkeypatch.setattr("florence2.data.validate._CHUNK", 2)
    progress = []
    assert len(check_images(resolve(photos), workers=2, progress=progress.append).samples) == 5
    assert progress == [1, 2, 3, 4, 5]


def test_skipped_rows_remain_skipped(photos):
    image(photos / "5.jpg")
    damage(photos / "0.jpg")
    rest = check_images(resolve_dataset(photos, DatasetOptions("caption", on_missing="skip")), on_missing="skip")
    assert [(s.id, s.reason) for s in rest.skipped] == [
        ("5.jpg", SkipReason.NO_CAPTION),
        ("0.jpg", SkipReason.UNREADABLE),
    ]
    assert rest.num_images == 6


def test_failed_predictions_do_not_raise(photos):
    sample = resolve(photos).samples[0]
    dataset = ResolvedDataset("x", None, [sample], [Skipped("9.jpg", SkipReason.FAILED, "9.jpg")])
    assert raise_on_skipped(dataset, "error") is dataset


def test_empty_dataset_is_an_error():
    with pytest.raises(DatasetError, match="list contains no samples"):
        raise_on_skipped(ResolvedDataset("list", None, []), "skip")


# --- train/validation split ------------------------------------------------------------------------------------------


def many(images: int, each: int = 1) -> list[Sample]:
    return [Sample(f"{n}.jpg", b"", str(task)) for n in range(images) for task in range(each)]


@pytest.mark.parametrize(
    ("images", "fraction", "num_validation"),
    [(100, 0.1, 10), (10, 0.01, 1), (10, 0.99, 9), (2, 0.5, 1), (1, 0.5, 0), (10, 0, 0)],
)
def test_size_of_the_validation_split(images, fraction, num_validation):
    training, validation = train_val_split(many(images), fraction, seed=0)
    assert (len(training), len(validation)) == (images - num_validation, num_validation)


def test_image_is_on_one_side_only():
    training, validation = train_val_split(many(20, each=3), 0.25, seed=1)
    assert len(validation) == 15
    assert not {s.id for s in training} & {s.id for s in validation}


def test_split_depends_on_the_seed_only():
    def validation_ids(samples, seed):
        return [s.id for s in train_val_split(samples, 0.3, seed)[1]]

    assert validation_ids(many(50), 1) == validation_ids(many(50), 1)
    assert validation_ids(many(50), 1) != validation_ids(many(50), 2)
    assert sorted(validation_ids(many(50), 1)) == sorted(validation_ids(many(50)[::-1], 1))  # in any order of samples
    assert [s.id for s in train_val_split(many(50), 0.3, 1)[0]] == [
        s.id for s in many(50) if s.id not in validation_ids(many(50), 1)
    ]


def test_dataset_whose_targets_are_all_empty_is_an_error(tmp_path):
    image(tmp_path / "a.jpg")
    row = {"file_name": "a.jpg", "task": "od", "answer": {"bboxes": [], "labels": []}}
    dataset = resolve(jsonl(tmp_path / "list.jsonl", [row]))
    with pytest.raises(DatasetError, match=r"the targets of all 1 samples in .* are empty"):
        check_images(dataset)
    assert check_dataset(dataset=str(tmp_path / "list.jsonl")).to_json()["issue_counts"] == {"no_targets": 1}
