import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from florence2.data.columns import ColumnMapping
from florence2.data.formats.shards import write_shards
from florence2.data.sample import Sample
from florence2.data.streams.shard_readers import ShardedSource, find_sharded_source
from florence2.data.streams.stream import SampleStream, Shard, buffer_shuffle
from florence2.errors import UserError
from tests.training.images import CAPTIONS, save_photos

ASKED = ColumnMapping("<CAPTION>")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("stream") / "photos")


@pytest.fixture(scope="module")
def tars(photos: Path) -> Path:
    """Four tars: three of two pictures, one of one, with 7 samples in all."""
    folder = photos.parent / "tars"
    folder.mkdir()
    rows = [(f"{n}.png", (photos / f"{n}.png").read_bytes(), [{"text": f"picture {n}"}]) for n in range(7)]
    assert write_shards(folder, rows, per_shard=2) == 4
    return folder


def texts(stream: SampleStream, epoch: int, share: Shard) -> list[str | None]:
    return [sample.target for sample in stream.epoch(epoch, share)]


@pytest.mark.parametrize("takers", [1, 2, 3, 4, 6])
def test_takers_get_every_sample_once_and_none_twice(tars: Path, takers: int) -> None:
    stream = SampleStream(find_sharded_source(str(tars), ASKED), seed=1)
    for epoch in range(3):
        seen = Counter(text for index in range(takers) for text in texts(stream, epoch, Shard(index, takers)))
        assert seen == {f"picture {n}": 1 for n in range(7)}


def test_epochs_and_seeds_differ_and_nothing_else_matters(tars: Path) -> None:
    def whole(seed: int, epoch: int) -> tuple[str | None, ...]:
        return tuple(texts(SampleStream(find_sharded_source(str(tars), ASKED), seed), epoch, Shard(0, 1)))

    random.seed(99)
    assert whole(0, 0) == whole(0, 0)
    assert len({whole(0, epoch) for epoch in range(8)}) == 8
    assert len({whole(seed, 0) for seed in range(8)}) == 8


def test_a_stream_goes_on_where_it_was_left(tars: Path) -> None:
    stream = SampleStream(find_sharded_source(str(tars), ASKED), seed=0, buffer_size=3)
    for share in (Shard(0, 1), Shard(1, 2), Shard(2, 3)):
        told = [(each.epoch, each.position, each.sample.target) for each in islice(stream.items(share), 30)]
        for start in (1, 7, 13):
            later = islice(stream.items(share, start), 30 - start)
            assert [(each.epoch, each.position, each.sample.target) for each in later] == told[start:]


def test_a_buffer_moves_things_and_loses_none() -> None:
    orders = {tuple(buffer_shuffle(range(50), 10, random.Random(seed))) for seed in range(20)}
    assert len(orders) == 20
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert all(order.index(item) >= item - 9 for order in orders for item in order)  # no further forward than it holds


def test_a_tar_is_read_as_far_as_it_is_wanted(tars: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tars / "000000.tar").read_bytes()[:2500])  # one picture is whole
    parts = find_sharded_source(str(cut), ASKED)
    first = next(iter(parts.read(0)))
    assert isinstance(first, Sample)
    assert first.open().size == (90, 70)


def row_parts(photos: Path, folder: Path, kind: str) -> ShardedSource:
    import datasets

    rows = [{"image": str(photos / f"{n}.png"), "text": text} for n, text in enumerate(CAPTIONS)]
    made = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    if kind == "parquet":
        made.to_parquet(folder / "rows.parquet")
        return find_sharded_source(str(folder / "rows.parquet"), ASKED)
    if kind == "saved":
        made.save_to_disk(folder / "saved")
        return find_sharded_source(str(folder / "saved"), ASKED)
    for n, text in enumerate(CAPTIONS):
        (folder / f"{n}.png").write_bytes((photos / f"{n}.png").read_bytes())
        with (folder / "metadata.jsonl").open("a") as table:
            table.write(json.dumps({"file_name": f"{n}.png", "text": text}) + "\n")
    return find_sharded_source(str(folder), ASKED)


@pytest.mark.parametrize("kind", ["parquet", "imagefolder", "saved"])
def test_datasets_are_streamed(photos: Path, tmp_path: Path, kind: str) -> None:
    parts = row_parts(photos, tmp_path, kind)
    for takers in (1, 3):
        samples = [each for index in range(takers) for each in SampleStream(parts).epoch(0, Shard(index, takers))]
        assert sorted(sample.target or "" for sample in samples) == sorted(CAPTIONS)
        assert {sample.task for sample in samples} == {"<CAPTION>"}
    assert {sample.open().size for sample in samples} == {(90, 70)}
    assert len({sample.id for sample in samples}) == 8


def test_what_has_no_answer_stops_the_stream_or_is_left_out(photos: Path, tmp_path: Path) -> None:
    image = (photos / "0.png").read_bytes()
    write_shards(tmp_path, [("a.png", image, [{"text": "a"}]), ("b.png", image, [{}])])
    parts = find_sharded_source(str(tmp_path / "000000.tar"), ASKED)
    with pytest.raises(UserError, match="have no caption") as caught:
        list(SampleStream(parts).epoch(0))
    assert "--on_missing skip" in caught.value.hint
    assert [sample.target for sample in SampleStream(parts, on_missing="skip").epoch(0)] == ["a"]


def test_more_takers_than_samples_is_said(tars: Path) -> None:
    stream = SampleStream(find_sharded_source(str(tars), ASKED))
    with pytest.raises(UserError, match="too few samples for 8 takers"):
        next(stream.items(Shard(7, 8)))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("list.jsonl", "is a list, which is read at once anyway"),
        ("gone.jsonl", "does not exist"),
        ("photos", "photos/ holds neither tars nor parquet files"),
    ],
)
def test_refused(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "list.jsonl").write_text("{}\n")
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=what):
        find_sharded_source(str(tmp_path / name), ASKED)
