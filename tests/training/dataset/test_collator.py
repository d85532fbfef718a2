from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from florence2.data.sample import Sample
from florence2.model.processing import Preprocessor
from florence2.training.dataset.collator import Florence2Collator, shift_right
from florence2.training.dataset.florence2_dataset import Florence2Dataset
from tests.tiny import tiny_model, tiny_processor
from tests.training.images import save_photos


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Florence2Dataset:
    folder = save_photos(tmp_path_factory.mktemp("photos"))
    samples = [
        Sample(path.name, path, "<CAPTION>", target=path.with_suffix(".txt").read_text())
        for path in sorted(folder.glob("*.png"))
    ]
    return Florence2Dataset(samples, Preprocessor.from_processor(tiny_processor()))


def test_padding_is_masked_in_prompts_and_ignored_in_labels(dataset: Florence2Dataset) -> None:
    examples = [dataset[0], dataset[5]]
    batch = Florence2Collator(1)(examples)
    for row, example in enumerate(examples):
        padding = batch["labels"].shape[1] - len(example["labels"])
        assert batch["labels"][row].tolist() == [*example["labels"], *[-100] * padding]
    labels_N = batch["labels"].flatten()[batch["label_positions_N"]]
    assert labels_N.tolist() == dataset[0]["labels"] + dataset[5]["labels"]
    assert "attention_mask" not in batch, "prompts of one length need none"
    longer = dataset[5] | {"input_ids": [*dataset[5]["input_ids"], 7, 7]}
    mask = Florence2Collator(1)([dataset[0], longer])["attention_mask"]
    assert mask.sum(1).tolist() == [len(dataset[0]["input_ids"]), len(longer["input_ids"])]
    assert batch["pixels_BHWC"].dtype == torch.uint8
    assert batch["pixels_BHWC"].shape == (2, 64, 64, 3)


def test_padding_to_a_multiple_limits_the_number_of_shapes(dataset: Florence2Dataset) -> None:
    common_length = dataset.common_prompt_length()
    assert common_length == len(dataset[0]["input_ids"])
    plain, padded = (Florence2Collator(1, multiple, common_length)([dataset[0], dataset[5]]) for multiple in (1, 16))
    assert padded["labels"].shape[1] % 16 == 0
    assert torch.equal(padded["input_ids"], plain["input_ids"]), "prompts of the common length are not padded"
    positions_N = padded["label_positions_N"]
    assert len(positions_N) % (padded["labels"].numel() // 8) == 0
    valid_N = positions_N[positions_N >= 0]
    assert padded["labels"].flatten()[valid_N].equal(plain["labels"].flatten()[plain["label_positions_N"]])
    assert positions_N[len(valid_N) :].eq(-1).all()
    longer = dataset[5] | {"input_ids": [*dataset[5]["input_ids"], 7, 7, 7]}
    for examples in ([dataset[0], longer], [longer]):
        batch = Florence2Collator(1, 16, common_length)(examples)
        assert batch["input_ids"].shape[1] % 16 == 0
        assert batch["attention_mask"].sum(1).tolist() == [len(example["input_ids"]) for example in examples]


def test_decoder_inputs_are_the_labels_shifted_right() -> None:
    labels = torch.tensor([[0, 7, 8, 2], [0, 9, 2, -100]])
    assert shift_right(labels, decoder_start_token_id=2, pad_token_id=1).tolist() == [[2, 0, 7, 8], [2, 0, 9, 2]]
    padded = torch.tensor([[0, -100, -100]])
    assert shift_right(padded, decoder_start_token_id=2, pad_token_id=1).tolist() == [[2, 0, 1]]


def test_trainer_of_transformers_trains_on_dataset_and_collator(dataset: Florence2Dataset, tmp_path: Path) -> None:
    model, processor = tiny_model()
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    collator = Florence2Collator(processor.tokenizer.pad_token_id, preprocessor=dataset.preprocessor)
    batch = collator([dataset[0], dataset[5]])
    output = model.eval()(**batch)
    expected = cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(output.loss, expected)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    result = Trainer(model, args, data_collator=collator, train_dataset=dataset).train()
    assert result.global_step == 2
    assert any(not torch.equal(before[name], weight) for name, weight in model.named_parameters())
