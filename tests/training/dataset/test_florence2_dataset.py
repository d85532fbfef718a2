import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from florence2.data.sample import Sample
from florence2.errors import UserError
from florence2.model import locations
from florence2.model.answer import Answer, AnswerItem
from florence2.model.processing import Preprocessor
from florence2.model.tasks import find_task
from florence2.training.dataset.caption_augmentation import CaptionAugmentation
from florence2.training.dataset.florence2_dataset import Florence2Collator, Florence2Dataset, preview_text, shift_right
from florence2.training.dataset.sampler import SampleDraw, WeightedSampler
from tests.tiny import tiny_processor
from tests.training.images import save_photos


@pytest.fixture(scope="module")
def preprocessor() -> Preprocessor:
    return Preprocessor.from_processor(tiny_processor())


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    folder = save_photos(tmp_path / "photos")
    return [
        Sample(path.name, path, "<CAPTION>", target=path.with_suffix(".txt").read_text().replace(" ", ", "))
        for path in sorted(folder.glob("*.png"))
    ]


def test_every_sample_is_drawn_once_and_epochs_differ() -> None:
    order = WeightedSampler(50, seed=1)
    first = list(order)
    order.set_epoch(3)
    later = list(order)
    assert sorted(draw.sample_index for draw in first) == sorted(draw.sample_index for draw in later) == list(range(50))
    assert [draw.sample_index for draw in first] != [draw.sample_index for draw in later]
    assert [draw.global_index for draw in later] == list(range(150, 200))
    assert {draw.epoch for draw in later} == {3}
    assert [draw.sample_index for draw in WeightedSampler(50, seed=2)] != [draw.sample_index for draw in first]


def test_like_lengths_come_together() -> None:
    lengths = [n % 10 for n in range(100)]
    order = WeightedSampler(100, seed=0, lengths=lengths, batch=5)
    drawn = [draw.sample_index for draw in order]
    assert sorted(drawn) == list(range(100))
    spread = [max(part) - min(part) for part in ([lengths[w] for w in drawn[n : n + 5]] for n in range(0, 100, 5))]
    assert max(spread) == 0
    assert [lengths[w] for w in drawn] != sorted(lengths)


def test_workers_change_nothing(preprocessor: Preprocessor, samples: list[Sample]) -> None:
    dataset = Florence2Dataset(
        samples, preprocessor, CaptionAugmentation(shuffle_caption=True, caption_tag_dropout_rate=0.3)
    )

    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        order = WeightedSampler(len(samples), seed=0)
        order.set_epoch(1)
        loader = DataLoader(dataset, 3, sampler=order, num_workers=workers, collate_fn=Florence2Collator(1))
        return list(loader)

    for mine, theirs in zip(batches(0), batches(2), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_padding_is_masked_and_ignored(preprocessor: Preprocessor, samples: list[Sample]) -> None:
    dataset = Florence2Dataset(samples, preprocessor, CaptionAugmentation())
    batch = Florence2Collator(1)([dataset[0], dataset[5]])
    for row, item in enumerate((dataset[0], dataset[5])):
        size = len(item["labels"])
        assert batch["labels"][row].tolist() == [*item["labels"], *[-100] * (batch["labels"].shape[1] - size)]
    assert batch["labels"].flatten()[batch["learnt_N"]].tolist() == dataset[0]["labels"] + dataset[5]["labels"]
    assert "attention_mask" not in batch, "prompts of one length need none"
    longer = dataset[5] | {"input_ids": [*dataset[5]["input_ids"], 7, 7]}
    mask = Florence2Collator(1)([dataset[0], longer])["attention_mask"]
    assert mask.sum(1).tolist() == [len(dataset[0]["input_ids"]), len(longer["input_ids"])]
    assert batch["pixels_BHWC"].dtype == torch.uint8
    assert batch["pixels_BHWC"].shape == (2, 64, 64, 3)


def test_padded_to_a_multiple_batches_come_in_few_shapes(preprocessor: Preprocessor, samples: list[Sample]) -> None:
    dataset = Florence2Dataset(samples, preprocessor, CaptionAugmentation())
    usual = dataset.common_prompt_length()
    assert usual == len(dataset[0]["input_ids"])
    plain, padded = (Florence2Collator(1, pad_to, usual)([dataset[0], dataset[5]]) for pad_to in (1, 16))
    assert padded["labels"].shape[1] % 16 == 0
    assert torch.equal(padded["input_ids"], plain["input_ids"]), "usual prompts stay as they are"
    assert len(padded["learnt_N"]) % (padded["labels"].numel() // 8) == 0
    places = padded["learnt_N"][padded["learnt_N"] >= 0]
    assert padded["labels"].flatten()[places].equal(plain["labels"].flatten()[plain["learnt_N"]])
    assert padded["learnt_N"][len(places) :].eq(-1).all()
    longer = dataset[5] | {"input_ids": [*dataset[5]["input_ids"], 7, 7, 7]}
    for items in ([dataset[0], longer], [longer]):
        uneven = Florence2Collator(1, 16, usual)(items)
        assert uneven["input_ids"].shape[1] % 16 == 0
        assert uneven["attention_mask"].sum(1).tolist() == [len(item["input_ids"]) for item in items]


def test_the_decoder_reads_what_comes_before() -> None:
    labels = torch.tensor([[0, 7, 8, 2], [0, 9, 2, -100]])
    assert shift_right(labels, start=2, pad=1).tolist() == [[2, 0, 7, 8], [2, 0, 9, 2]]
    assert shift_right(torch.tensor([[0, -100, -100]]), start=2, pad=1).tolist() == [[2, 0, 1]]


def test_long_answers_lose_whole_objects(preprocessor: Preprocessor) -> None:
    task = find_task("od")
    items = (AnswerItem.box([n * 10.0, 5.0, n * 10 + 8.0, 50.0], f"cat{n}") for n in range(9))
    answer = Answer(task.output_type, tuple(items))
    text = locations.encode(task, answer, (1000, 1000))
    whole = len(preprocessor.target_ids(text))
    dataset = Florence2Dataset(
        [Sample("a", Path("a"), task.token, target=text)],
        preprocessor,
        CaptionAugmentation(),
        max_target_length=whole - 3,
    )
    ids = dataset._target(dataset.augmented(dataset.samples[0], SampleDraw(0, 0, 0))[0])
    assert ids[-1] == preprocessor.target_ids(text)[-1]
    assert preprocessor.decode(ids) == locations.encode(task, answer.first(8), (1000, 1000))
    assert dataset.num_truncated() == 1


def test_an_image_lost_on_the_way_is_one_line_from_a_worker_too(
    preprocessor: Preprocessor, samples: list[Sample]
) -> None:
    dataset = Florence2Dataset(samples, preprocessor, CaptionAugmentation())
    shutil.rmtree(samples[0].image.parent)
    with pytest.raises(UserError, match=r"0\.png does not exist"):
        dataset[0]
    (batch,) = DataLoader(dataset, 8, num_workers=1, collate_fn=Florence2Collator(1))
    assert batch["problem"][0].endswith("0.png does not exist")


def test_preview_shows_three_epochs(preprocessor: Preprocessor, samples: list[Sample]) -> None:
    text = preview_text(Florence2Dataset(samples, preprocessor, CaptionAugmentation(shuffle_caption=True)), 1)
    assert [line.split(":")[0].strip() for line in text.splitlines()] == ["0.png", "epoch 1", "epoch 2", "epoch 3"]
