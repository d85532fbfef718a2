"""LoRA on a base in 4 bits, from photos to an adapter on the base as it was."""

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
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    save_photos(folder / "photos")
    save_calm(folder / "model")
    run(folder, "whole", **VALUES)
    return folder


def learnt(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_it_learns_and_the_adapter_sits_on_the_base_as_it_was(room: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (room / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    model, _ = load(room / "whole", device="cpu", merge=False)
    base, _ = load(room / "model", device="cpu")
    inner = model.get_base_model().model.language_model.encoder.layers[0].fc1.base_layer
    assert torch.equal(inner.weight, base.model.language_model.encoder.layers[0].fc1.weight)
    assert load(room / "whole", device="cpu")[0].dtype == torch.float32


def test_four_bits_are_another_base(room: Path) -> None:
    plain = run(room, "plain", **(VALUES | {"quantize": False}))
    assert any(not torch.equal(learnt(plain)[name], weight) for name, weight in learnt(room / "whole").items())
    with pytest.raises(UserError, match="was trained with `--quantize True`, not `False`"):
        run(room, "whole", **(VALUES | {"quantize": False}), resume="auto")


def test_stopped_and_resumed_is_never_stopped(room: Path) -> None:
    shutil.copytree(room / "whole" / "checkpoint-4", room / "again" / "checkpoint-4")
    again = learnt(run(room, "again", **VALUES, resume="auto"))
    assert all(torch.equal(again[name], weight) for name, weight in learnt(room / "whole").items())


def test_an_adapter_is_trained_further_on_four_bits(room: Path) -> None:
    out = run(room, "further", model_id=str(room / "whole"), quantize=True, learning_rate=1e-2)
    assert learnt(out).keys() == learnt(room / "whole").keys()


@pytest.mark.parametrize("lora_args", [("use_dora=true",), ("init_lora_weights=eva",), ("use_rslora=true",)], ids=str)
def test_lora_variant_trains_language_component_on_quantized_base(room: Path, lora_args: tuple[str, ...]) -> None:
    values = VALUES | {"epochs": 2, "save_every_n_steps": None, "lora_args": lora_args, "freeze": "vision"}
    out = run(room, lora_args[0], **values)
    trained = learnt(out)
    assert not [name for name in trained if ".language_model." not in name]
    b_matrices = [weight for name, weight in trained.items() if ".lora_B." in name]
    assert len(b_matrices) == len(trained) / (3 if "use_dora=true" in lora_args else 2)
    assert all(weight.any() for weight in b_matrices), "they start at zero"
    model, _ = load(out, device="cpu", merge=False)
    loaded = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(loaded) == len(trained)
