import io
import json
import pickle
import tarfile

import pytest
from PIL import Image

from florence2.data.image import ImageError
from florence2.data.resolve import DatasetOptions, resolve_dataset, resolve_images
from florence2.data.stores.store_path import StorePath
from florence2.data.stores.write_store import upload_file
from florence2.data.streams.tars.tar_records import read_tar
from florence2.data.streams.tars.tar_source import find_shards
from florence2.data.streams.tars.tar_writer import write_shards
from florence2.errors import DatasetError
from tests.strategies import locs


def encoded(size=(20, 10)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


def tar(path, files, mode="w"):
    with tarfile.open(path, mode) as written:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            content = content if isinstance(content, bytes) else content.encode()
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
    return path


def read_samples(spec, task="caption"):
    return [(s.id, s.task, s.input, s.target) for s in resolve_dataset(spec, DatasetOptions(task)).samples]


def test_records_have_captions_or_rows(tmp_path):
    rows = [{"task": "od", "answer": {"bboxes": [[0, 0, 10, 5]], "labels": ["cat"]}}, {"text": "a cat"}]
    files = {
        "0001.png": encoded(),
        "0001.txt": "a\nboat ",
        "in/2.txt": "a tree",
        "in/2.seg.png": b"another file of this record",
        "in/2.PNG": encoded((30, 10)),
        "3.png": encoded(),
        "3.json": json.dumps(rows),
        "notes.md": "not an image",
    }
    path = tar(tmp_path / "a.tar", files)
    assert read_samples(path) == [
        ("0001.png", "<CAPTION>", "", "a boat"),
        ("in/2.png", "<CAPTION>", "", "a tree"),
        ("3.png", "<OD>", "", "cat" + locs(0, 0, 500, 500)),
        ("3.png", "<CAPTION>", "", "a cat"),
    ]
    samples = resolve_dataset(path, DatasetOptions("caption")).samples
    assert [sample.open().size for sample in samples] == [(20, 10), (30, 10), (20, 10), (20, 10)]
    assert pickle.loads(pickle.dumps(samples[1])).open().size == (30, 10)  # as it is sent to workers
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]  # nothing is unpacked


def test_images_without_targets(tmp_path):
    path = tar(tmp_path / "a.tar", {"1.png": encoded(), "2.png": encoded()})
    assert [(s.id, s.task, s.target) for s in resolve_images(path, task="od").samples] == [
        ("1.png", "<OD>", None),
        ("2.png", "<OD>", None),
    ]
    with pytest.raises(DatasetError, match="have no caption"):
        read_samples(path)


def test_tars_by_pattern(tmp_path):
    for name in ("s-08", "s-09", "s-10"):
        tar(tmp_path / f"{name}.tar", {"1.png": encoded(), "1.txt": name})
    for pattern in ("s-{08..10}.tar", "s-{08,09,10}.tar", "s-*.tar", ""):
        assert [row[3] for row in read_samples(tmp_path / pattern)] == ["s-08", "s-09", "s-10"]
    assert [row[0] for row in read_samples(tmp_path / "s-{08..09}.tar")] == ["s-08.tar/1.png", "s-09.tar/1.png"]
    with pytest.raises(DatasetError, match=r"s-11\.tar does not exist"):
        find_shards(f"{tmp_path}/s-{{10..11}}.tar")


def test_unreadable_tars_are_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DatasetError, match="is not a tar that can be read"):
        read_samples(tmp_path / "a.tar")
    tar(tmp_path / "b.tar.gz", {"1.png": encoded()}, "w:gz")
    with pytest.raises(DatasetError, match="is compressed"):
        read_samples(tmp_path / "b.tar.gz")


def test_written_tars_are_read_back(tmp_path):
    rows = [{"task": "<OD>", "text": "cat" + locs(1, 2, 3, 4)}]
    images = [(f"a.b/{n}.x.PNG", encoded(), rows * (n + 1)) for n in range(3)]
    assert write_shards(tmp_path, images, per_shard=2) == 2
    assert [row[0] for row in read_samples(tmp_path)] == [
        "000000.tar/00000000.png",
        *["000000.tar/00000001.png"] * 2,
        *["000001.tar/00000002.png"] * 3,
    ]
    assert {row[1:] for row in read_samples(tmp_path)} == {("<OD>", "", "cat" + locs(1, 2, 3, 4))}


@pytest.mark.parametrize(
    ("names", "images", "ignored"),
    [
        ("a.1.png a.2.png a.3.png", "a.1.png a.2.png a.3.png", []),
        ("b.png b.seg.png b.meta.json", "b.png", ["further file of a record"] * 2),
        ("c.jpg c.png", "c.jpg", ["further file of a record"]),
        ("._d.png d.png __MACOSX/._d.png .DS_Store", "d.png", []),
        (
            "e.png e.npy e.cls inner.tar README f.mp4",
            "e.png",
            [".npy", ".cls", ".tar", "file without an extension", ".mp4"],
        ),
        ("g.json h.json g.png h.png", "g.png h.png", None),
        ("i.png i.png", "i.png", ["earlier file with the same name"]),
        ("j.png link:k.png", "j.png", ["link"]),
        (" ".join(f"l.{n:03d}.png" for n in range(150)), " ".join(f"l.{n:03d}.png" for n in range(150)), []),
        ("m.png m.txt m.bad.json n.png", "m.png n.png", ["further file of a record"]),
    ],
)
def test_no_image_of_a_tar_is_dropped_in_silence(tmp_path, names, images, ignored):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as written:
        for name in names.split(" "):
            member = tarfile.TarInfo(name.removeprefix("link:"))
            if name.startswith("link:"):
                member.type, member.linkname = tarfile.SYMTYPE, "j.png"
            content = encoded() if name.endswith(".png") else b"{}"
            member.size = 0 if member.issym() else len(content)
            written.addfile(member, io.BytesIO(content))
    stored = StorePath(f"memory://records/{abs(hash(names))}.tar")
    upload_file(path, stored)
    for each in (path, stored):
        records = list(read_tar(each, has_targets=False))
        assert " ".join(record.name for record in records) == images
        if ignored is not None:  # rows that are apart from their images are read of a local tar alone
            assert sorted(kind for record in records for kind in record.ignored) == sorted(ignored)


def test_a_dotted_image_has_its_own_caption_and_the_row_of_all(tmp_path):
    files = {"a.1.png": encoded(), "a.1.txt": "one", "a.2.png": encoded(), "a.json": '{"task": "caption"}'}
    files |= {"a.2.json": '{"text": "two", "task": "detailed_caption"}'}
    assert read_samples(tar(tmp_path / "a.tar", files), "more_detailed_caption") == [
        ("a.1.png", "<CAPTION>", "", "one"),
        ("a.2.png", "<DETAILED_CAPTION>", "", "two"),
    ]


def test_what_a_prediction_does_not_need_fails_no_tar(tmp_path):
    files = {"a.png": encoded(), "a.json": "{bad", "b.png": encoded(), "b.txt": "é".encode("latin-1")}
    samples = resolve_images(tar(tmp_path / "a.tar", files), task="caption").samples
    assert [sample.id for sample in samples] == ["a.png", "b.png"]
    with pytest.raises(ImageError, match=r"a\.json is not JSON"):
        samples[0].open()
    assert samples[1].open().size == (20, 10)
    with pytest.raises(DatasetError, match=r"contains no image; not read: 1 \.mp4"):
        resolve_images(tar(tmp_path / "b.tar", {"a.mp4": b""}), task="caption")
    (tmp_path / "c.tar.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="is compressed"):
        resolve_images(tmp_path / "c.tar.gz", task="caption")
