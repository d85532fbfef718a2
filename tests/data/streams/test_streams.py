import json
import random
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from florence2.data.columns import ColumnMapping
from florence2.data.sample import Sample
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.shard_readers import ShardedSource
from florence2.data.streams.stream import SampleStream, Shard, buffer_shuffle
from florence2.data.streams.table_shards import TableShards
from florence2.data.streams.tars.tar_writer import write_shards
from florence2.errors import DatasetError
from tests.training.images import CAPTIONS, save_photos

COLUMNS = ColumnMapping("<CAPTION>")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("stream") / "photos")


@pytest.fixture(scope="module")
def tars(photos: Path) -> Path:
    """Write four tars with 2, 2, 2 and 1 samples."""
    folder = photos.parent / "tars"
    folder.mkdir()
    rows = [(f"{n}.png", (photos / f"{n}.png").read_bytes(), [{"text": f"image {n}"}]) for n in range(7)]
    assert write_shards(folder, rows, per_shard=2) == 4
    return folder


def texts(stream: SampleStream, epoch: int, shard: Shard) -> list[str | None]:
    return [sample.target for sample in stream.epoch(epoch, shard)]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6])
def test_shards_are_disjoint_and_complete(tars: Path, workers: int) -> None:
    stream = SampleStream(find_sharded_source(str(tars), COLUMNS), seed=1)
    for epoch in range(3):
        counts = Counter(text for index in range(workers) for text in texts(stream, epoch, Shard(index, workers)))
        assert counts == {f"image {n}": 1 for n in range(7)}


def test_order_depends_only_on_seed_and_epoch(tars: Path) -> None:
    def order(seed: int, epoch: int) -> tuple[str | None, ...]:
        return tuple(texts(SampleStream(find_sharded_source(str(tars), COLUMNS), seed), epoch, Shard(0, 1)))

    random.seed(99)
    assert order(0, 0) == order(0, 0)
    assert len({order(0, epoch) for epoch in range(8)}) == 8
    assert len({order(seed, 0) for seed in range(8)}) == 8


def test_resumed_stream_continues_the_order(tars: Path) -> None:
    stream = SampleStream(find_sharded_source(str(tars), COLUMNS), seed=0, buffer_size=3)
    for shard in (Shard(0, 1), Shard(1, 2), Shard(2, 3)):
        items = [(each.epoch, each.position, each.sample.target) for each in islice(stream.items(shard), 30)]
        for start in (1, 7, 13):
            later = islice(stream.items(shard, start), 30 - start)
            assert [(each.epoch, each.position, each.sample.target) for each in later] == items[start:]


def test_buffer_shuffle_is_a_permutation() -> None:
    orders = {tuple(buffer_shuffle(range(50), 10, random.Random(seed))) for seed in range(20)}
    assert len(orders) == 20
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert all(
        order.index(item) >= item - 9 for order in orders for item in order
    )  # an item moves forward by less than the buffer size


def test_tars_are_read_lazily(tars: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tars / "000000.tar").read_bytes()[:2500])  # one image is complete
    source = find_sharded_source(str(cut), COLUMNS)
    first = next(iter(source.read(0)))
    assert isinstance(first, Sample)
    assert first.open().size == (90, 70)


def dataset_source(photos: Path, folder: Path, kind: str) -> ShardedSource:
    import datasets

    rows = [{"image": str(photos / f"{n}.png"), "text": text} for n, text in enumerate(CAPTIONS)]
    made = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    if kind == "parquet":
        made.to_parquet(folder / "rows.parquet")
        return find_sharded_source(str(folder / "rows.parquet"), COLUMNS)
    if kind == "saved":
        made.save_to_disk(folder / "saved")
        return find_sharded_source(str(folder / "saved"), COLUMNS)
    for n, text in enumerate(CAPTIONS):
        (folder / f"{n}.png").write_bytes((photos / f"{n}.png").read_bytes())
        with (folder / "metadata.jsonl").open("a") as table:
            table.write(json.dumps({"file_name": f"{n}.png", "text": text}) + "\n")
    return find_sharded_source(str(folder), COLUMNS)


@pytest.mark.parametrize("kind", ["parquet", "imagefolder", "saved"])
def test_datasets_are_streamed(photos: Path, tmp_path: Path, kind: str) -> None:
    source = dataset_source(photos, tmp_path, kind)
    for workers in (1, 3):
        samples = [each for index in range(workers) for each in SampleStream(source).epoch(0, Shard(index, workers))]
        assert sorted(sample.target or "" for sample in samples) == sorted(CAPTIONS)
        assert {sample.task for sample in samples} == {"<CAPTION>"}
    assert {sample.open().size for sample in samples} == {(90, 70)}
    assert len({sample.id for sample in samples}) == 8


def test_missing_target_raises_or_is_skipped(photos: Path, tmp_path: Path) -> None:
    image = (photos / "0.png").read_bytes()
    write_shards(tmp_path, [("a.png", image, [{"text": "a"}]), ("b.png", image, [{}])])
    source = find_sharded_source(str(tmp_path / "000000.tar"), COLUMNS)
    with pytest.raises(DatasetError, match="have no caption") as caught:
        list(SampleStream(source).epoch(0))
    assert "--on_missing skip" in caught.value.hint
    assert [sample.target for sample in SampleStream(source, on_missing="skip").epoch(0)] == ["a"]


def test_a_bad_tar_raises_or_is_skipped(tars: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("000000.tar", "000001.tar", "000002.tar"):
        (tmp_path / name).write_bytes((tars / name).read_bytes())
    (tmp_path / "000001.tar").write_bytes(b"damaged" * 200)
    source = find_sharded_source(str(tmp_path), COLUMNS)
    with pytest.raises(DatasetError, match=r"000001.tar is not a tar") as caught:
        list(SampleStream(source).epoch(0))
    assert "--on_missing skip" in caught.value.hint
    left = Counter(texts(SampleStream(source, on_missing="skip"), 0, Shard(0, 1)))
    assert left == {f"image {number}": 1 for number in (0, 1, 4, 5)}
    assert "skipped 1 sample, the first:" in caplog.text
    assert "000001.tar is not a tar" in caplog.text


def test_too_few_samples_for_the_workers_is_an_error(tars: Path) -> None:
    stream = SampleStream(find_sharded_source(str(tars), COLUMNS))
    with pytest.raises(DatasetError, match="too few samples for 8 workers"):
        next(stream.items(Shard(7, 8)))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("list.jsonl", "is a table, which cannot be streamed"),
        ("gone.jsonl", "does not exist"),
        ("photos", "photos/ contains neither tars nor parquet files"),
    ],
)
def test_unstreamable_sources_are_rejected(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "list.jsonl").write_text("{}\n")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match=what):
        find_sharded_source(str(tmp_path / name), COLUMNS)


@pytest.mark.parametrize("kind", ["tar", "saved", "table"])
def test_what_a_stream_does_not_read_is_counted(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    import datasets

    image = (photos / "0.png").read_bytes()
    rows = [{"text": f"image {n}", "url": "x"} | ({"license": "y"} if n == 3 else {}) for n in range(5)]
    if kind == "tar":
        write_shards(tmp_path, [(f"{n}.png", image, [row]) for n, row in enumerate(rows)])
        with tarfile.open(tmp_path / "000000.tar", "a") as tar:
            tar.addfile(tarfile.TarInfo("alone.txt"))
        source = find_sharded_source(str(tmp_path), COLUMNS)
        expected = "columns `license` of 1 row, `url` of 5 rows; 1 target without an image"
    else:
        encoded = [{"image": {"bytes": image, "path": None}, "license": None, **row} for row in rows]
        made = datasets.Dataset.from_list(encoded).cast_column("image", datasets.Image(decode=False))
        made.to_parquet(tmp_path / "rows.parquet")
        made.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
        source = (
            find_sharded_source(str(tmp_path / "saved"), COLUMNS)
            if kind == "saved"
            else TableShards("rows", (tmp_path / "rows.parquet",), COLUMNS)
        )
        expected = "columns `license` of 5 rows, `url` of 5 rows"
    stream = SampleStream(source)
    assert len(stream.first(5)) == 5
    assert "not read in the first 5 samples: columns " in caplog.text
    caplog.clear()
    assert len(list(stream.epoch(0))) == 5
    assert f"not read: {expected}; the first in " in caplog.text
    caplog.clear()
    list(stream.epoch(1))
    assert not caplog.text
