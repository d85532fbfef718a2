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
from florence2.training.dataset.collator import Florence2Collator
from florence2.training.dataset.florence2_dataset import Florence2Dataset, preview_lines
from florence2.training.dataset.sampler import SampleDraw
from florence2.training.dataset.training_data import DatasetBuilder, TrainingData
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


def test_batches_do_not_depend_on_the_number_of_workers(preprocessor: Preprocessor, samples: list[Sample]) -> None:
    captions = CaptionAugmentation(shuffle_caption=True, caption_tag_dropout_rate=0.3)
    dataset = Florence2Dataset(samples, preprocessor, captions)

    def load_batches(num_workers: int) -> list[dict[str, torch.Tensor]]:
        sampler = dataset.sampler(seed=0)
        sampler.set_epoch(1)
        return list(DataLoader(dataset, 3, sampler=sampler, num_workers=num_workers, collate_fn=Florence2Collator(1)))

    for one, other in zip(load_batches(0), load_batches(2), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_long_targets_are_truncated_between_objects(preprocessor: Preprocessor) -> None:
    task = find_task("od")
    items = (AnswerItem.box([n * 10.0, 5.0, n * 10 + 8.0, 50.0], f"cat{n}") for n in range(9))
    answer = Answer(task.output_type, tuple(items))
    text = locations.encode(task, answer, (1000, 1000))
    length = len(preprocessor.target_ids(text))
    sample = Sample("a", Path("a"), task.token, target=text)
    dataset = Florence2Dataset([sample], preprocessor, max_target_length=length - 3)
    ids = dataset._target_ids(sample)
    assert ids[-1] == preprocessor.target_ids(text)[-1]
    assert preprocessor.decode(ids) == locations.encode(task, answer.first(8), (1000, 1000))
    assert dataset.num_truncated() == 1


def test_missing_image_in_a_worker_is_reported_without_a_traceback(
    preprocessor: Preprocessor, samples: list[Sample]
) -> None:
    dataset = Florence2Dataset(samples, preprocessor)
    assert isinstance(samples[0].image, Path)
    shutil.rmtree(samples[0].image.parent)
    with pytest.raises(UserError, match=r"0\.png does not exist"):
        dataset[0]
    (batch,) = DataLoader(dataset, 8, num_workers=1, collate_fn=Florence2Collator(1))
    assert batch["error"][0].endswith("0.png does not exist")


def damage(path: Path) -> None:
    """Remove the middle of a PNG, and neither its header nor its end."""
    data = path.read_bytes()
    path.write_bytes(data[:60] + data[-20:])


def test_unreadable_images_are_replaced_by_the_next_in_every_process(
    preprocessor: Preprocessor, samples: list[Sample]
) -> None:
    for index in (2, 3, 7):
        image = samples[index].image
        assert isinstance(image, Path)
        damage(image)
    dataset = Florence2Dataset(samples, preprocessor, weights=[1.5] * len(samples))
    for index, replacement in ((2, 4), (3, 4), (7, 0), (5, 5)):
        example, expected = (dataset[SampleDraw(1, 9, each)] for each in (index, replacement))
        assert (example["pixels_HWC"] == expected["pixels_HWC"]).all()
        assert example["labels"] == expected["labels"]
        names = [samples[each].id for each in {2: (2, 3), 3: (3,), 7: (7,)}.get(index, ())]
        assert [Path(line.split(" cannot")[0]).name for line in example.get("unreadable", [])] == names

    def load(num_workers: int, skip: int) -> list[dict]:
        sampler = dataset.sampler(seed=0)
        sampler.set_epoch(1)
        loader = DataLoader(dataset, 3, sampler=sampler, num_workers=num_workers, collate_fn=Florence2Collator(1))
        return list(loader)[skip:]

    uninterrupted = load(0, 0)
    assert {len(batch["labels"]) for batch in uninterrupted} == {3}
    for resumed in (load(0, 2), load(2, 2)):
        for one, other in zip(uninterrupted[2:], resumed, strict=True):
            assert one.get("unreadable") == other.get("unreadable")
            assert all(torch.equal(one[name], other[name]) for name in one if name != "unreadable")


def test_preview_has_three_epochs(preprocessor: Preprocessor, samples: list[Sample]) -> None:
    lines = preview_lines(Florence2Dataset(samples, preprocessor, CaptionAugmentation(shuffle_caption=True)), 1)
    assert [line.split(":")[0].strip() for line in lines] == ["0.png", "epoch 1", "epoch 2", "epoch 3"]


def test_builder_resolves_the_warmup_and_limits_targets(preprocessor: Preprocessor, samples: list[Sample]) -> None:
    captions = CaptionAugmentation(token_warmup_step=0.5, shuffle_caption=True)
    data = TrainingData(samples[:6], weights=[2.0] * 6, eval=samples[6:])
    builder = DatasetBuilder(data, preprocessor, captions, seed=7, model_max_length=64, max_length=10)
    train = builder.train_dataset(total_steps=20, samples_per_step=4)
    assert train.caption_augmentation.token_warmup_step == 10
    assert (train.samples_per_epoch, train.samples_per_step, train.seed) == (12, 4, 7)
    assert (train.max_prompt_length, train.max_target_length) == (64, 12)
    evaluation = builder.eval_dataset()
    assert (len(evaluation), evaluation.samples_per_epoch) == (2, 2)
    target = evaluation.augmented(samples[6], SampleDraw(0, 0, 0))[0].target
    assert target == samples[6].target
    assert DatasetBuilder(data, preprocessor, model_max_length=8, max_length=10).train_dataset().max_target_length == 8
    assert DatasetBuilder(data, preprocessor).train_dataset().max_target_length is None
