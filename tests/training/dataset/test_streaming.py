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

from florence2.data.columns import ColumnMapping
from florence2.data.formats.shards import write_shards
from florence2.data.streams.shard_readers import find_sharded_source
from florence2.data.streams.stream import SampleStream
from florence2.errors import UserError
from florence2.model.processing import Preprocessor
from florence2.recipes.train import train
from florence2.training.dataset.caption_augmentation import CaptionAugmentation
from florence2.training.dataset.florence2_dataset import Florence2Collator, Florence2Dataset
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


def pouring(room: Path, **given: Any) -> StreamingDataset:
    stream = SampleStream(find_sharded_source(str(room / "tars"), ColumnMapping("<CAPTION>")), seed=0, buffer_size=3)
    return StreamingDataset(
        Florence2Dataset((), Preprocessor.from_processor(tiny_processor()), CaptionAugmentation()), stream, **given
    )


def batches(taken: int = 0, *, workers: int, number: int, of: StreamingDataset) -> list[list[str]]:
    options = {"collate_fn": Florence2Collator(1), "num_workers": workers}
    loaded = islice(iter(ResumableDataLoader(of, lambda: taken, options)), number)
    decode = of.dataset.preprocessor.decode
    return [[decode([each for each in row if each >= 0]) for row in batch["labels"].tolist()] for batch in loaded]


def test_two_processes_of_two_workers_see_each_sample_once_an_epoch(room: Path) -> None:
    seen: Counter[str] = Counter()
    for process in range(2):
        # Two samples an epoch for each of the four takers: 4 batches of one, 3 epochs of them.
        said = batches(workers=2, number=12, of=pouring(room, batch_size=1, process_index=process, num_processes=2))
        seen.update(text for batch in said for text in batch)
    assert seen == dict.fromkeys(CAPTIONS, 3)


@pytest.mark.parametrize("rows", [8, 1])  # in shards that can be dealt out, and in one that all takers read
def test_workers_share_out_a_dataset_too(room: Path, tmp_path: Path, rows: int) -> None:
    table = [{"image": str(room / "photos" / f"{n}.png"), "text": text} for n, text in enumerate(CAPTIONS)]
    made = datasets.Dataset.from_list(table).cast_column("image", datasets.Image())
    name = str(tmp_path / "rows")
    if rows > 1:
        made.save_to_disk(name)
    else:
        made.to_parquet(name := f"{name}.parquet")
    stream = SampleStream(find_sharded_source(name, ColumnMapping("<CAPTION>")))
    assert stream.source.num_shards == rows
    dataset = Florence2Dataset((), Preprocessor.from_processor(tiny_processor()), CaptionAugmentation())
    said = [
        batches(workers=2, number=4, of=StreamingDataset(dataset, stream, process_index=process, num_processes=2))
        for process in range(2)
    ]
    assert sorted(text for each in said for batch in each for text in batch) == sorted(CAPTIONS)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_gives_what_would_have_come(room: Path, workers: int) -> None:
    of = pouring(room, batch_size=2, process_index=1, num_processes=2)
    whole = batches(workers=workers, number=7, of=of)
    for taken in (1, 2, 5):
        assert batches(taken, workers=workers, number=7 - taken, of=of) == whole[taken:]


def test_a_problem_in_a_worker_is_one_line(room: Path, tmp_path: Path) -> None:
    write_shards(tmp_path, [("a.png", b"no picture", [{"text": "a"}]), ("b.png", b"nor this", [{"text": "b"}])])
    stream = SampleStream(find_sharded_source(str(tmp_path / "000000.tar"), ColumnMapping("<CAPTION>")))
    of = StreamingDataset(
        Florence2Dataset((), Preprocessor.from_processor(tiny_processor()), CaptionAugmentation()), stream
    )
    with pytest.raises(UserError, match="is not an image that can be read"):
        next(iter(of))
    batch = next(iter(ResumableDataLoader(of, lambda: 0, {"collate_fn": Florence2Collator(1), "num_workers": 1})))
    assert batch["problem"][0].endswith("is not an image that can be read")


def test_training_on_a_stream_resumed_is_never_stopped(room: Path) -> None:
    save_calm(room / "model", dropout=0.2)
    given: dict[str, Any] = {
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
    whole = run(room, "whole", **given, trainer_args=["max_steps=6"])
    again = room / "again"
    shutil.copytree(whole / "checkpoint-3", again / "checkpoint-3")
    run(room, "again", **given, trainer_args=["max_steps=6"], resume="auto")
    mine, theirs = (load_file(out / "checkpoint-6" / "adapter_model.safetensors") for out in (again, whole))
    rows = [(out / "metrics.jsonl").read_text().splitlines()[-1] for out in (whole, again)]
    assert json.loads(rows[0])["epoch"] == json.loads(rows[1])["epoch"] == 1
    start = load_file(whole / "checkpoint-3" / "adapter_model.safetensors")
    assert any(not torch.equal(start[name], theirs[name]) for name in theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


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
    config = {"datasets": ("tars",), "task": "caption", "streaming": True, "val_dataset": "photos"} | data
    with pytest.raises(UserError) as caught:
        check_streaming(TrainingDataConfig(**config), {"max_steps": 3, **trainer_args}, lora_args, **by_epoch)
    assert caught.value.what == f"`--streaming` cannot be combined with {option}"


@pytest.mark.parametrize("trainer_args", [{}, {"max_steps": "many"}, {"max_steps": 0}])
def test_streaming_needs_a_number_of_steps(trainer_args: dict[str, Any]) -> None:
    config = TrainingDataConfig(("tars",), "caption", streaming=True)
    with pytest.raises(UserError, match="`--streaming` needs a number of steps"):
        check_streaming(config, trainer_args, {})


def test_streaming_allows_an_evaluation_dataset_and_other_lora_initializations() -> None:
    config = TrainingDataConfig(("tars",), "caption", streaming=True, val_dataset="photos")
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
