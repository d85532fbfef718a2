"""TFRecord files, whose examples protobuf itself encodes."""

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.errors import DatasetError
from tests.data.formats.annotation_files import check, read_objects

BOX = {
    f"image/object/bbox/{side}": [value]
    for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (0.125, 0.25, 0.5, 0.75), strict=True)
}


def example_class() -> Any:
    """Make the message class of tf.train.Example from its published definition."""
    protobuf = pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    assert protobuf
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for name, type_ in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(name="value", number=1, type=type_, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    for number, (name, type_) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        feature.field.add(
            name=name, number=number, type=field.TYPE_MESSAGE, type_name=f".t.{type_}", label=field.LABEL_OPTIONAL
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, type_name=".t.Feature", label=field.LABEL_OPTIONAL)
    features.field.add(
        name="feature",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".t.Features.FeatureEntry",
        label=field.LABEL_REPEATED,
    )
    file.message_type.add(name="Example").field.add(
        name="features", number=1, type=field.TYPE_MESSAGE, type_name=".t.Features", label=field.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def encode(features: dict[str, list[Any]]) -> bytes:
    example = example_class()()
    for name, values in features.items():
        feature = example.features.feature[name]
        column = {bytes: feature.bytes_list, float: feature.float_list, int: feature.int64_list}[type(values[0])]
        column.value.extend(values)
    return example.SerializeToString()


def encoded_image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, *examples: bytes) -> Path:
    path.write_bytes(b"".join(struct.pack("<Q4x", len(each)) + each + bytes(4) for each in examples))
    return path


def test_objects_of_tfrecords_are_read(tmp_path: Path) -> None:
    common = {"image/encoded": [encoded_image()], "image/width": [80], "image/height": [40]}
    boxes = {key: [*value, 1.0] for key, value in BOX.items()}
    labels = {"image/object/class/text": [b"cat", b"chien"], "image/object/class/label": [1, 300]}
    first = encode({**common, "image/filename": [b"in/a.png"], **boxes, **labels})
    path = write(tmp_path / "train.tfrecord", first, encode({**common, "image/filename": [b"b.png"]}), b"\xff\xff")
    assert read_objects(write(tmp_path / "a.record", first)) == {
        "a.png": [("cat", [10, 10, 40, 30]), ("chien", [80, 40, 80, 40])]
    }
    dataset = resolve_dataset(path, DatasetOptions("od", on_missing="skip"))
    assert [sample.id for sample in dataset.samples] == ["a.png"]
    assert dataset.samples[0].open().size == (80, 40)
    assert len(dataset.skipped) == 2
    assert check(path)["issue_counts"]["malformed"] == 2
    assert [s.id for s in resolve_dataset(tmp_path, DatasetOptions("od", on_missing="skip")).samples] == [
        "a.record/a.png",
        "train.tfrecord/a.png",
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x1f\x8b" + bytes(20), "is a compressed TFRecord"),
        (b"hello, this is some text", "is not a TFRecord, or is truncated after byte 12"),
        (struct.pack("<Q4x", 2) + b"\x0a", "is not a TFRecord, or is truncated after byte 12"),
        (struct.pack("<Q4x", 2) + b"\x0a\x00" + bytes(4), "has no `image/encoded`"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.tfrecord").write_bytes(content)
    with pytest.raises(DatasetError, match=what):
        resolve_dataset(tmp_path / "a.tfrecord", DatasetOptions("od"))
