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
from florence2.training import eva_init as eva
from florence2.training.eva_init import _places
from tests.training.images import run, save_calm, save_photos
from tests.training.test_trainer import Bench

EVA = ("init_lora_weights=eva",)


def begun(folder: Path, *words: str, colour: str = "") -> Bench:
    bench = Bench(folder, rank=2, lora_args=(*EVA, *words))
    if colour:
        samples = [replace(s, image=Image.new("RGB", (64, 64), colour)) for s in bench.dataset.samples]
        bench.dataset = replace(bench.dataset, samples=samples)
    eva.initialize_eva(bench.model, bench.dataset, bench.trainer.data_collator, bench.trainer._forward_batch)
    return bench


def layers(bench: Bench) -> dict[str, Any]:
    return {name: module for name, module in bench.model.named_modules() if isinstance(module, LoraLayer)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return begun(tmp_path_factory.mktemp("eva"))


def test_directions_are_those_of_the_inputs(bench: Bench) -> None:
    name = "base_model.model.model.language_model.encoder.layers.1.fc1"
    seen: list[torch.Tensor] = []
    layer = layers(bench)[name]
    batch = bench.batch(0, 1, 2, 3)
    hook = layer.register_forward_hook(lambda _, given, __: seen.append(_places(given, batch, name)))
    bench.model.eval()
    with torch.no_grad():
        bench.trainer._forward_batch(bench.model, batch)
    hook.remove()
    directions = layer.lora_A["default"].weight.detach()
    torch.testing.assert_close(directions @ directions.T, torch.eye(len(directions)), atol=1e-4, rtol=0)
    inputs = seen[0] - seen[0].mean(0)
    kept = (inputs @ directions.T).square().sum() / inputs.square().sum()
    best = torch.linalg.svdvals(inputs)[: len(directions)].square().sum() / inputs.square().sum()
    assert kept > 0.98 * best


def test_ranks_go_where_the_variance_is(bench: Bench) -> None:
    ranks = {name: layer.r["default"] for name, layer in layers(bench).items()}
    assert len({*ranks.values()}) > 1
    assert max(ranks.values()) <= 4
    before = layers(Bench(Path(bench.args.output_dir), rank=2))
    assert sum(ranks.values()) == 2 * len(before)
    weights = [(n, w) for n, w in bench.model.named_parameters() if w.requires_grad]
    assert all(weight.dtype == torch.float32 for _, weight in weights)
    assert not any(weight.any() for name, weight in weights if ".lora_B." in name)


def test_other_images_begin_elsewhere(bench: Bench, tmp_path: Path) -> None:
    one, other = layers(bench), layers(begun(tmp_path, colour="navy"))
    vision = [name for name in one.keys() & other.keys() if "vision_tower.blocks.0" in name]
    assert vision
    for name in vision:
        a, b = (found[name].lora_A["default"].weight[0] for found in (one, other))
        assert abs(a @ b) < 0.999


def test_ranks_stay_where_redistribution_is_off(tmp_path: Path) -> None:
    ranks = {layer.r["default"] for layer in layers(begun(tmp_path, 'eva_config={"rho": 1.0}')).values()}
    assert ranks == {2}


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rank=4, lora_args=EVA)
    bench.trainer.train_dataset = replace(bench.dataset, samples=bench.dataset.samples[1:2])
    with pytest.raises(UserError, match=r"EVA needs 8 tokens of captions to begin from, and there are 4"):
        bench.trainer.train()


def test_more_directions_than_a_layer_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="EVA looks for 10 directions, rank times rho, and a layer has 8"):
        Bench(tmp_path, rank=5, lora_args=EVA).trainer.train()


def test_trained_resumed_and_loaded_it_is_an_adapter_like_any_other(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    values: dict[str, Any] = {"lora_args": EVA, "rank": 2, "epochs": 2, "save_every_n_steps": 2, "learning_rate": 1e-2}
    whole = run(tmp_path, "whole", **values)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    again = run(tmp_path, "again", **values, resume="auto")
    mine, theirs = (load_file(out / "adapter_model.safetensors") for out in (again, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    load(whole, device="cpu")
    further = run(tmp_path, "further", model_id=str(whole), learning_rate=1e-2)
    assert load_file(further / "adapter_model.safetensors").keys() == theirs.keys()
