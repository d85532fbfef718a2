import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from florence2.api import train
from florence2.data.columns import ColumnMapping
from florence2.data.resolve import DatasetOptions
from florence2.data.streams.open_source import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.data.streams.tars.tar_writer import write_shards
from florence2.errors import UserError
from florence2.model.processing import Preprocessor
from florence2.training.dataset.collator import Florence2Collator
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from florence2.training.dataset.streaming import ResumableDataLoader, StreamingDataset, check_streaming
from florence2.training.dataset.training_data import TrainingDataConfig
from tests.tiny import tiny_processor
from tests.training.images import CAPTIONS, run, save_calm, save_photos


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    photos = save_photos(folder / "photos")
    (folder / "tars").mkdir()
    images = [(photos / f"{n}.png").read_bytes() for n in range(8)]
    rows = [(f"{n}.png", images[n], [{"text": text}]) for n, text in enumerate(CAPTIONS)]
    assert write_shards(folder / "tars", rows, per_shard=3) == 3  # 3, 3 and 2 samples
    return folder


def streaming_dataset(stream: SampleStream, **options: Any) -> StreamingDataset:
    dataset = Florence2Dataset((), Preprocessor.from_processor(tiny_processor()))
    return StreamingDataset(dataset, stream, **options)


def stream_tars(room: Path, **options: Any) -> StreamingDataset:
    source = find_sharded_source(str(room / "tars"), ColumnMapping("<CAPTION>"))
    return streaming_dataset(SampleStream(source, seed=0, buffer_size=3), **options)


def load_batches(dataset: StreamingDataset, number: int, num_workers: int, consumed: int = 0) -> list[list[str]]:
    """Load batches of decoded targets."""
    options = {"collate_fn": Florence2Collator(1), "num_workers": num_workers}
    loader = ResumableDataLoader(dataset, lambda: consumed, options)
    decode = dataset.dataset.preprocessor.decode
    return [
        [decode([label for label in row if label >= 0]) for row in batch["labels"].tolist()]
        for batch in islice(iter(loader), number)
    ]


def test_processes_and_workers_read_each_sample_once_per_epoch(room: Path) -> None:
    counts: Counter[str] = Counter()
    for process in range(2):
        # Each of the four workers reads two samples per epoch: 4 batches of one sample per process, in 3 epochs.
        dataset = stream_tars(room, batch_size=1, process_index=process, num_processes=2)
        counts.update(text for batch in load_batches(dataset, 12, num_workers=2) for text in batch)
    assert counts == dict.fromkeys(CAPTIONS, 3)


@pytest.mark.parametrize("num_shards", [8, 1])  # a shard for each worker, and one shard that all workers read
def test_workers_read_disjoint_rows_of_a_dataset(room: Path, tmp_path: Path, num_shards: int) -> None:
    table = [{"image": str(room / "photos" / f"{n}.png"), "text": text} for n, text in enumerate(CAPTIONS)]
    rows = datasets.Dataset.from_list(table).cast_column("image", datasets.Image())
    name = str(tmp_path / "rows")
    if num_shards > 1:
        rows.save_to_disk(name)
    else:
        rows.to_parquet(name := f"{name}.parquet")
    stream = SampleStream(find_sharded_source(name, ColumnMapping("<CAPTION>")))
    assert stream.source.num_shards == num_shards
    batches = [
        batch
        for process in range(2)
        for batch in load_batches(streaming_dataset(stream, process_index=process, num_processes=2), 4, num_workers=2)
    ]
    assert sorted(text for batch in batches for text in batch) == sorted(CAPTIONS)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_stream_continues_the_uninterrupted_stream(room: Path, num_workers: int) -> None:
    dataset = stream_tars(room, batch_size=2, process_index=1, num_processes=2)
    uninterrupted = load_batches(dataset, 7, num_workers)
    for consumed in (1, 2, 5):
        assert load_batches(dataset, 7 - consumed, num_workers, consumed) == uninterrupted[consumed:]


def test_unreadable_image_in_a_worker_is_reported_without_a_traceback(room: Path, tmp_path: Path) -> None:
    write_shards(tmp_path, [("a.png", b"no image", [{"text": "a"}]), ("b.png", b"nor this", [{"text": "b"}])])
    stream = SampleStream(find_sharded_source(str(tmp_path / "000000.tar"), ColumnMapping("<CAPTION>")))
    dataset = streaming_dataset(stream)
    with pytest.raises(UserError) as caught:
        next(iter(dataset))
    loader = ResumableDataLoader(dataset, lambda: 0, {"collate_fn": Florence2Collator(1), "num_workers": 1})
    what, _ = next(iter(loader))["error"]
    assert what == caught.value.what
    assert what.startswith("000000.tar/")


def test_resumed_streaming_run_equals_uninterrupted_run(room: Path) -> None:
    save_calm(room / "model", dropout=0.2)
    options: dict[str, Any] = {
        "dataset": str(room / "tars"),
        "streaming": True,
        "task": "caption",
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_workers": 1,
        "val_dataset": str(room / "photos"),
        "augment": ["scale=0.7,0.9"],
        "save_every_n_steps": 3,
    }
    uninterrupted = run(room, "uninterrupted", **options, trainer_args=["max_steps=6"])
    resumed = room / "resumed"
    shutil.copytree(uninterrupted / "checkpoint-3", resumed / "checkpoint-3")
    run(room, "resumed", **options, trainer_args=["max_steps=6"], resume="auto")
    weights, expected = (
        load_file(out / "checkpoint-6" / "adapter_model.safetensors") for out in (resumed, uninterrupted)
    )
    rows = [(out / "metrics.jsonl").read_text().splitlines()[-1] for out in (uninterrupted, resumed)]
    assert json.loads(rows[0])["epoch"] == json.loads(rows[1])["epoch"] == 1
    start = load_file(uninterrupted / "checkpoint-3" / "adapter_model.safetensors")
    assert any(not torch.equal(start[name], expected[name]) for name in expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("data", "trainer_args", "lora_args", "by_epoch", "option"),
    [
        ({"datasets": ("a", "b")}, {}, {}, {}, "several datasets"),
        ({"sampling_weights": {"od": 2.0}}, {}, {}, {}, "`--sampling_weights`"),
        ({"val_dataset": 0.1}, {}, {}, {}, "`--val_dataset 0.1`"),
        ({}, {}, {}, {"saves_by_epoch": True}, "`--save_every_n_epochs`"),
        ({}, {}, {}, {"samples_by_epoch": True}, "`--sample_every_n_epochs`"),
        ({}, {}, {"init_lora_weights": "eva"}, {}, "`--lora_args init_lora_weights=eva`"),
        (
            {},
            {"train_sampling_strategy": "group_by_length"},
            {},
            {},
            "`--trainer_args train_sampling_strategy=group_by_length`",
        ),
    ],
)
def test_streaming_refuses_options_that_need_all_samples(
    data: dict[str, Any],
    trainer_args: dict[str, Any],
    lora_args: dict[str, Any],
    by_epoch: dict[str, bool],
    option: str,
) -> None:
    config = {
        "datasets": ("tars",),
        "options": DatasetOptions("caption"),
        "streaming": True,
        "val_dataset": "photos",
    } | data
    with pytest.raises(UserError) as caught:
        check_streaming(TrainingDataConfig(**config), {"max_steps": 3, **trainer_args}, lora_args, **by_epoch)
    assert caught.value.what == f"`--streaming` cannot be combined with {option}"


@pytest.mark.parametrize("trainer_args", [{}, {"max_steps": "many"}, {"max_steps": 0}])
def test_streaming_needs_a_number_of_steps(trainer_args: dict[str, Any]) -> None:
    config = TrainingDataConfig(("tars",), DatasetOptions("caption"), streaming=True)
    with pytest.raises(UserError, match="`--streaming` needs a number of steps"):
        check_streaming(config, trainer_args, {})


def test_streaming_allows_an_evaluation_dataset_and_other_lora_initializations() -> None:
    config = TrainingDataConfig(("tars",), DatasetOptions("caption"), streaming=True, val_dataset="photos")
    check_streaming(config, {"max_steps": 3}, {"init_lora_weights": "pissa"})


@pytest.mark.parametrize("word", ["init_lora_weights=eva", 'init_lora_weights="eva"'])
def test_train_refuses_eva_with_streaming(tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match="init_lora_weights=eva"):
        train(
            dataset="tars",
            output_dir=str(tmp_path / "out"),
            streaming=True,
            trainer_args=["max_steps=3"],
            lora_args=[word],
        )
