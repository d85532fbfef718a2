"""LoRA on a base in 4 bits, from images to an adapter that fits the unquantized base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from florence2.errors import UserError
from florence2.model.load import load
from tests.training.images import run, save_calm, save_photos

VALUES: dict[str, Any] = {
    "quantize": True,
    "batch_size": 8,
    "epochs": 8,
    "learning_rate": 3e-2,
    "dropout": 0.0,
    "save_every_n_steps": 4,
    "trainer_args": ["logging_steps=1"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized")
    save_photos(path / "photos")
    save_calm(path / "model")
    run(path, "quantized", **VALUES)
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "adapter_model.safetensors")


def test_training_lowers_the_loss_and_the_adapter_fits_the_unquantized_base(folder: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (folder / "quantized" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    model, _ = load(folder / "quantized", device="cpu", merge=False)
    base, _ = load(folder / "model", device="cpu")
    linear = model.get_base_model().model.language_model.encoder.layers[0].fc1.base_layer
    assert torch.equal(linear.weight, base.model.language_model.encoder.layers[0].fc1.weight)
    assert load(folder / "quantized", device="cpu")[0].dtype == torch.float32


def test_quantized_and_plain_runs_are_incompatible(folder: Path) -> None:
    plain = run(folder, "plain", **(VALUES | {"quantize": False}))
    assert any(
        not torch.equal(read_weights(plain)[name], weight)
        for name, weight in read_weights(folder / "quantized").items()
    )
    with pytest.raises(UserError, match="was trained with `--quantize True`, not `False`"):
        run(folder, "quantized", **(VALUES | {"quantize": False}), resume="auto")


def test_resumed_run_equals_uninterrupted_run(folder: Path) -> None:
    shutil.copytree(folder / "quantized" / "checkpoint-4", folder / "resumed" / "checkpoint-4")
    resumed = read_weights(run(folder, "resumed", **VALUES, resume="auto"))
    assert all(torch.equal(resumed[name], weight) for name, weight in read_weights(folder / "quantized").items())


def test_adapter_can_be_trained_further_on_a_quantized_base(folder: Path) -> None:
    output = run(folder, "further", model_id=str(folder / "quantized"), quantize=True, learning_rate=1e-2)
    assert read_weights(output).keys() == read_weights(folder / "quantized").keys()


@pytest.mark.parametrize("lora_args", [("use_dora=true",), ("init_lora_weights=eva",), ("use_rslora=true",)], ids=str)
def test_lora_variant_trains_language_component_on_quantized_base(folder: Path, lora_args: tuple[str, ...]) -> None:
    values = VALUES | {"epochs": 2, "save_every_n_steps": None, "lora_args": lora_args, "freeze": "vision"}
    output = run(folder, lora_args[0], **values)
    trained = read_weights(output)
    assert not [name for name in trained if ".language_model." not in name]
    b_matrices = [weight for name, weight in trained.items() if ".lora_B." in name]
    assert len(b_matrices) == len(trained) / (3 if "use_dora=true" in lora_args else 2)
    assert all(weight.any() for weight in b_matrices), "they start at zero"
    model, _ = load(output, device="cpu", merge=False)
    loaded = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(loaded) == len(trained)
