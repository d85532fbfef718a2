"""Weights and logits that are NaN or infinite."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from florence2.data.sample import Sample
from florence2.engine.decoding.outputs import NOT_FINITE
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.errors import CheckpointError
from florence2.files import to_json
from florence2.model.load import load
from florence2.model.storage.finite import is_finite
from tests.tiny import save_tiny, tiny_model


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_one_number_that_is_not_finite_in_any_tensor_is_refused_by_name(tmp_path: Path, value: float) -> None:
    path = save_tiny(tmp_path) / "model.safetensors"
    state = load_file(path)
    name = "model.language_model.decoder.layers.1.fc1.weight"
    state[name][3, 4] = value
    save_file(state, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"not finite in .*{name}"):
        load(tmp_path, device="cpu")


def test_large_weights_whose_sum_overflows_are_loaded(tmp_path: Path) -> None:
    path = save_tiny(tmp_path) / "model.safetensors"
    state = load_file(path)
    state["model.language_model.decoder.layers.1.fc1.weight"].fill_(3e38)
    save_file(state, path, {"format": "pt"})
    load(tmp_path, device="cpu", dtype="float32")


@pytest.mark.parametrize("engine_class", [Engine, GenerateEngine])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"do_sample": True}, {"do_sample": True, "num_beams": 2}])
def test_logits_that_are_not_finite_are_an_error_of_the_image(
    tmp_path: Path, search: dict[str, Any], engine_class: type[Engine] | type[GenerateEngine]
) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(image)
    model, processor = tiny_model()
    model.model.vision_tower.convs[0].conv.weight.data[0, 0, 0, 0] = float("nan")
    config = EngineConfig(generation=GenerationConfig(max_length=6, **search))
    with engine_class(model, processor, config) as engine:
        predictions = list(engine.run([Sample("a.png", image, task) for task in ("<CAPTION>", "<OD>")]))
    assert [(each.error, each.text, each.answer) for each in predictions] == [(NOT_FINITE, "", None)] * 2


def test_json_has_null_for_numbers_that_are_not_finite() -> None:
    value = {"a": [1.5, float("nan")], "b": {"c": (float("inf"), "NaN")}}
    assert json.loads(to_json(value)) == {"a": [1.5, None], "b": {"c": [None, "NaN"]}}
    assert to_json("猫\udcff", encoding="cp1252") == '"\\u732b\\udcff"'
    assert to_json("猫\udcff") == '"猫\\udcff"'


def test_demo_has_no_checked_number_that_is_not_finite() -> None:
    model, _ = load("demo", device="cpu", dtype=torch.float16)
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bits_of_numbers_that_are_not_finite_are_found(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    finite = torch.tensor([limits.max, limits.min, limits.tiny, 0.0, -0.0], dtype=dtype)
    assert is_finite(finite)
    assert is_finite(finite[:0])
    for value in (torch.nan, -torch.nan, torch.inf, -torch.inf):
        assert not is_finite(torch.cat((finite, torch.tensor([value], dtype=dtype))))
        assert not is_finite(torch.cat((finite, torch.tensor([value], dtype=dtype).copysign(torch.tensor(-1.0)))))
