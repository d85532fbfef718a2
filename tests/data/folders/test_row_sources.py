"""Rows of other trainers mean the same in every container: a table, a tar, and `datasets`, listed and streamed."""

import datasets
import pytest

from florence2.data.columns import ColumnMapping
from florence2.data.resolve import DatasetOptions, resolve_dataset
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.data.streams.tars.tar_writer import write_shards
from florence2.errors import DatasetError
from tests.data.images import image, jsonl

BOX = "<loc_100><loc_100><loc_300><loc_300>"


def saved(folder, rows, features=None):
    columns = {"image": [str(folder / "a.png")] * len(rows)} | {key: [row[key] for row in rows] for key in rows[0]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    for name, feature in (features or {}).items():
        dataset = dataset.cast_column(name, feature)
    return dataset


def as_table(folder, rows):
    return jsonl(folder / "x.jsonl", [{"image": "a.png", **row} for row in rows])


def as_saved(folder, rows):
    saved(folder, rows).save_to_disk(folder / "saved")
    return folder / "saved"


def as_parquet(folder, rows):
    saved(folder, rows).to_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def as_tar(folder, rows):
    encoded = (folder / "a.png").read_bytes()
    write_shards(folder, [("a.png", encoded, [row]) for row in rows])
    return folder / "000000.tar"


def read_listed(path, text_column=None):
    options = DatasetOptions("more_detailed_caption", text_column=text_column)
    return [(sample.task, sample.input, sample.target) for sample in resolve_dataset(path, options).samples]


def read_streamed(path, text_column=None):
    source = find_sharded_source(str(path), ColumnMapping("<MORE_DETAILED_CAPTION>", text=text_column))
    return [(sample.task, sample.input, sample.target) for sample in SampleStream(source).first(99)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    image(tmp_path / "a.png", (100, 100))
    yield tmp_path
    datasets.enable_progress_bars()


CONTAINERS = [
    pytest.param(as_table, read_listed, id="table"),
    pytest.param(as_saved, read_listed, id="saved"),
    pytest.param(as_parquet, read_listed, id="parquet"),
    pytest.param(as_tar, read_listed, id="tar"),
    pytest.param(as_saved, read_streamed, id="streamed-saved"),
    pytest.param(as_parquet, read_streamed, id="streamed-parquet"),
    pytest.param(as_tar, read_streamed, id="streamed-tar"),
]
QUESTION = "What is the total?"
SWIFT = {"ref": ["cat"], "bbox": [[10.0, 10.0, 30.0, 30.0]]}
PARTS = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Describe"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
]
TURNS = [
    {"from": "human", "value": "<image>\nDescribe"},
    {"from": "gpt", "value": "a cat"},
    {"from": "human", "value": "Where?"},
    {"from": "gpt", "value": "on a sofa"},
]
GPT = [{"role": "user", "content": "<image><OD>"}, {"role": "assistant", "content": "<ref-object><bbox>"}]


@pytest.mark.parametrize(("write", "read"), CONTAINERS)
@pytest.mark.parametrize(
    ("row", "samples"),
    [
        ({"question": QUESTION, "answer": "12.00"}, [("<DocVQA>", QUESTION, "12.00")]),  # one answer
        (
            {"question": QUESTION, "answers": ["12", "12.00"]},  # several answers
            [("<DocVQA>", QUESTION, "12"), ("<DocVQA>", QUESTION, "12.00")],
        ),
        ({"question": QUESTION, "answer": 12}, [("<DocVQA>", QUESTION, "12")]),  # a number as the answer
        ({"messages": PARTS}, [("Describe", "", "a cat")]),  # a chat whose content is a list of parts
        ({"conversations": TURNS}, [("Describe", "", "a cat"), ("Where?", "", "on a sofa")]),  # a chat of two turns
        ({"messages": GPT, "objects": SWIFT}, [("<OD>", "", f"cat{BOX}")]),  # placeholders of boxes
        (
            {"objects": {"bbox": [[10.0, 10.0, 20.0, 20.0]], "category": ["cat"]}},  # columns of objects
            [("<OD>", "", f"cat{BOX}")],
        ),
        (
            {"lines": [{"text": "EXIT", "box": [10, 10, 30, 30]}]},  # lines of text
            [("<OCR_WITH_REGION>", "", "EXIT<loc_100><loc_100><loc_300><loc_100><loc_300><loc_300><loc_100><loc_300>")],
        ),
        ({"suffix": "cat<loc_1000>", "prefix": "<OD>"}, [("<OD>", "", "cat<loc_999>")]),  # a bin without a token
    ],
)
def test_row_has_the_same_samples_in_every_container(folder, write, read, row, samples):
    assert read(write(folder, [row])) == samples


@pytest.mark.parametrize(("write", "read"), CONTAINERS)
def test_text_column_names_the_answers_of_questions(folder, write, read):
    path = write(folder, [{"question": QUESTION, "answers": ["12"]}])
    assert read(path, text_column="answers") == [("<DocVQA>", QUESTION, "12")]


@pytest.mark.parametrize(("write", "read"), CONTAINERS)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": float("nan")}, "caption"),  # NaN in place of null
        ({"question": QUESTION, "answer": None}, "caption"),  # a question without an answer
        ({"text": 7}, "has the text `7`, which is not a string"),  # a class number in place of text
        ({"objects": {"bbox": [[10, 10, 20, 20]], "category": [0]}}, "class numbers in `objects.category`"),  # numbers
        ({"objects": {"bbox": [[10, 10, 20]], "category": ["cat"]}}, "not a list of boxes"),  # a box of three numbers
        ({"objects": {"bbox": [[10.0, float("nan"), 2.0, 2.0]], "category": ["cat"]}}, "not a list of boxes"),  # NaN
        ({"messages": GPT[:1]}, "not pairs of `user` and `assistant`"),  # a prompt without a response
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "`content`"),  # a part of another type
        (
            {"task": "od", "answer": {"bboxes": [[float("inf"), 0.0, 1.0, 1.0]], "labels": ["cat"]}},
            "cannot be encoded",  # infinity in a box
        ),
    ],
)
def test_row_is_rejected_in_every_container(folder, write, read, row, message):
    with pytest.raises(DatasetError) as caught:
        read(write(folder, [row]))
    assert message in caught.value.what


def test_class_numbers_become_the_names_of_the_features(folder):
    objects = [{"bbox": [[10.0, 10.0, 20.0, 20.0]], "category": [1]}]
    names = datasets.ClassLabel(names=["dog", "cat"])
    box = datasets.Sequence(datasets.Value("float32"))
    features = [
        {"bbox": datasets.Sequence(box), "category": datasets.Sequence(names)},  # a struct of sequences
        datasets.Sequence({"bbox": box, "category": names}),  # a sequence of structs
    ]
    for number, feature in enumerate(features):
        path = folder / f"saved{number}"
        saved(folder, [{"objects": each} for each in objects], {"objects": feature}).save_to_disk(path)
        assert read_listed(path) == read_streamed(path) == [("<OD>", "", f"cat{BOX}")]
    path = folder / "labels"
    saved(folder, [{"label": 1}], {"label": names}).save_to_disk(path)
    assert read_listed(path, "label") == [("<MORE_DETAILED_CAPTION>", "", "cat")]
