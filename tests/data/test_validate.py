import pytest

from florence2.data.resolve import resolve_dataset
from florence2.data.sample import ResolvedDataset, Sample, Skipped, SkipReason
from florence2.data.validate import check_images, raise_on_skipped, train_val_split
from florence2.errors import UserError
from tests.data.images import captioned, image, jsonl


@pytest.fixture
def photos(tmp_path):
    for n in range(5):
        captioned(tmp_path / f"{n}.jpg", f"boat {n}")
    return tmp_path


def found(spec) -> ResolvedDataset:
    return resolve_dataset(spec, task="caption")


def damage(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_sound_images_pass(photos):
    before = found(photos)
    assert [s.id for s in check_images(before).samples] == [s.id for s in before.samples]


def test_unreadable_images_are_counted_and_named(photos):
    damage(photos / "1.jpg")
    (photos / "3.jpg").write_bytes(b"junk")
    with pytest.raises(UserError) as caught:
        check_images(found(photos))
    assert caught.value.what.startswith(f"2 of 5 pictures in {photos}/ cannot be read, the first: {photos / '1.jpg'} ")
    assert caught.value.hint == "pass --on_missing skip to leave it out"
    rest = check_images(found(photos), missing="skip")
    assert [s.id for s in rest.samples] == ["0.jpg", "2.jpg", "4.jpg"]
    assert [(s.id, s.reason) for s in rest.skipped] == [
        ("1.jpg", SkipReason.UNREADABLE),
        ("3.jpg", SkipReason.UNREADABLE),
    ]


def test_no_image_that_can_be_read(tmp_path):
    captioned(tmp_path / "a.jpg", "a boat")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        check_images(found(tmp_path), missing="skip")
    assert caught.value.what == f"{tmp_path / 'a.jpg'} is not a picture that can be read"


def test_each_image_is_opened_once(tmp_path):
    image(tmp_path / "a.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    rows = [{"file_name": name, "task": t, "text": "x"} for name in ("bad.jpg", "a.jpg") for t in ("ocr", "caption")]
    seen = []
    rest = check_images(found(jsonl(tmp_path / "list.jsonl", rows)), missing="skip", progress=seen.append)
    assert seen == [1, 2]
    assert [s.key for s in rest.samples] == [("a.jpg", "<OCR>", ""), ("a.jpg", "<CAPTION>", "")]
    assert [s.id for s in rest.skipped] == ["bad.jpg"]
    assert rest.num_images == 2


def test_more_images_than_threads_take_at_once(photos, monkeypatch):
    monkeypatch.setattr("florence2.data.validate._CHUNK", 2)
    seen = []
    assert len(check_images(found(photos), workers=2, progress=seen.append).samples) == 5
    assert seen == [1, 2, 3, 4, 5]


def test_what_was_left_out_before_stays_so(photos):
    image(photos / "5.jpg")
    damage(photos / "0.jpg")
    rest = check_images(resolve_dataset(photos, task="caption", missing="skip"), missing="skip")
    assert [(s.id, s.reason) for s in rest.skipped] == [
        ("5.jpg", SkipReason.NO_CAPTION),
        ("0.jpg", SkipReason.UNREADABLE),
    ]
    assert rest.num_images == 6


def test_failed_predictions_are_no_error(photos):
    sample = found(photos).samples[0]
    kept = ResolvedDataset("x", None, [sample], [Skipped("9.jpg", SkipReason.FAILED, "9.jpg")])
    assert raise_on_skipped(kept, "error") is kept


def test_nothing_at_all():
    with pytest.raises(UserError, match="list holds no samples"):
        raise_on_skipped(ResolvedDataset("list", None, []), "skip")


# --- held out ----------------------------------------------------------------------------------------------------


def many(images: int, each: int = 1) -> list[Sample]:
    return [Sample(f"{n}.jpg", b"", str(task)) for n in range(images) for task in range(each)]


@pytest.mark.parametrize(
    ("images", "fraction", "held"),
    [(100, 0.1, 10), (10, 0.01, 1), (10, 0.99, 9), (2, 0.5, 1), (1, 0.5, 0), (10, 0, 0)],
)
def test_how_many_are_held_out(images, fraction, held):
    training, validation = train_val_split(many(images), fraction, seed=0)
    assert (len(training), len(validation)) == (images - held, held)


def test_an_image_is_on_one_side_only():
    training, validation = train_val_split(many(20, each=3), 0.25, seed=1)
    assert len(validation) == 15
    assert not {s.id for s in training} & {s.id for s in validation}


def test_the_seed_decides():
    def held(samples, seed):
        return [s.id for s in train_val_split(samples, 0.3, seed)[1]]

    assert held(many(50), 1) == held(many(50), 1)
    assert held(many(50), 1) != held(many(50), 2)
    assert sorted(held(many(50), 1)) == sorted(held(many(50)[::-1], 1))  # whatever the order on disk
    assert [s.id for s in train_val_split(many(50), 0.3, 1)[0]] == [
        s.id for s in many(50) if s.id not in held(many(50), 1)
    ]
