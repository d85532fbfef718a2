import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file

from florence2.errors import UserError
from florence2.model.load import load
from florence2.training.eva_init import EvaBatches, initialize_eva, remove_padding
from tests.training.images import run, save_calm, save_photos
from tests.training.test_trainer import Bench

EVA = ("init_lora_weights=eva",)


def initialized(folder: Path, *lora_args: str, colour: str = "") -> Bench:
    """Make a bench whose LoRA is initialized by EVA, with images of one colour if `colour` is passed."""
    bench = Bench(folder, rank=2, lora_args=(*EVA, *lora_args))
    if colour:
        image = Image.new("RGB", (64, 64), colour)
        bench.dataset = replace(
            bench.dataset, samples=[replace(sample, image=image) for sample in bench.dataset.samples]
        )
    initialize_eva(bench.model, bench.dataset, bench.trainer.data_collator, bench.trainer._forward_batch)
    return bench


def lora_layers(bench: Bench) -> dict[str, Any]:
    return {name: module for name, module in bench.model.named_modules() if isinstance(module, LoraLayer)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return initialized(tmp_path_factory.mktemp("eva"))


def test_a_matrix_holds_the_principal_components_of_the_inputs(bench: Bench) -> None:
    name = "base_model.model.model.language_model.encoder.layers.1.fc1"
    inputs: list[torch.Tensor] = []
    layer = lora_layers(bench)[name]
    batch = bench.batch(0, 1, 2, 3)
    hook = layer.register_forward_hook(lambda _, args, __: inputs.append(remove_padding(args, batch, name)))
    bench.model.eval()
    with torch.no_grad():
        bench.trainer._forward_batch(bench.model, batch)
    hook.remove()
    components = layer.lora_A["default"].weight.detach()
    torch.testing.assert_close(components @ components.T, torch.eye(len(components)), atol=1e-4, rtol=0)
    centered = inputs[0] - inputs[0].mean(0)
    explained = (centered @ components.T).square().sum() / centered.square().sum()
    best = torch.linalg.svdvals(centered)[: len(components)].square().sum() / centered.square().sum()
    assert explained > 0.98 * best


def test_ranks_follow_the_variance_of_the_inputs(bench: Bench) -> None:
    ranks = {name: layer.r["default"] for name, layer in lora_layers(bench).items()}
    assert len({*ranks.values()}) > 1
    assert max(ranks.values()) <= 4
    assert sum(ranks.values()) == 2 * len(lora_layers(Bench(Path(bench.args.output_dir), rank=2)))
    weights = [(name, weight) for name, weight in bench.model.named_parameters() if weight.requires_grad]
    assert all(weight.dtype == torch.float32 for _, weight in weights)
    assert not any(weight.any() for name, weight in weights if ".lora_B." in name)


def test_other_images_give_other_components(bench: Bench, tmp_path: Path) -> None:
    one, other = lora_layers(bench), lora_layers(initialized(tmp_path, colour="navy"))
    vision = [name for name in one.keys() & other.keys() if "vision_tower.blocks.0" in name]
    assert vision
    for name in vision:
        a, b = (layers[name].lora_A["default"].weight[0] for layers in (one, other))
        assert abs(a @ b) < 0.999


def test_ranks_do_not_change_with_rho_one(tmp_path: Path) -> None:
    bench = initialized(tmp_path, 'eva_config={"rho": 1.0}')
    assert {layer.r["default"] for layer in lora_layers(bench).values()} == {2}


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rank=4, lora_args=EVA)
    bench.trainer.train_dataset = replace(bench.dataset, samples=bench.dataset.samples[1:2])
    with pytest.raises(UserError, match="EVA needs 8 target tokens, but the samples have 4"):
        bench.trainer.train()


def test_more_components_than_inputs_of_a_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="EVA computes 10 components, rank times rho, but a layer has 8 inputs"):
        Bench(tmp_path, rank=5, lora_args=EVA).trainer.train()


def test_batches_end_where_the_components_do_not_converge(bench: Bench) -> None:
    batches = EvaBatches(bench.dataset, list, min_tokens=1)
    assert [len(batch) for batch in batches] == [len(bench.dataset)]
    batches.num_batches = 300
    with pytest.raises(UserError, match="EVA has not converged after 300 batches"):
        list(batches)


def test_adapter_is_resumed_loaded_and_trained_further(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    values: dict[str, Any] = {"lora_args": EVA, "rank": 2, "epochs": 2, "save_every_n_steps": 2, "learning_rate": 1e-2}
    uninterrupted = run(tmp_path, "uninterrupted", **values)
    shutil.copytree(uninterrupted / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = run(tmp_path, "resumed", **values, resume="auto")
    weights, expected = (load_file(out / "adapter_model.safetensors") for out in (resumed, uninterrupted))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    load(uninterrupted, device="cpu")
    further = run(tmp_path, "further", model_id=str(uninterrupted), learning_rate=1e-2)
    assert load_file(further / "adapter_model.safetensors").keys() == expected.keys()
