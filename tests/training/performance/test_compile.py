"""Training with a compiled vision tower equals training without."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from florence2.api import train
from florence2.errors import UserError
from florence2.training.performance.compile import check_can_compile, compile_model
from florence2.training.performance.memory import checkpoint_activations
from tests.training.models import trainable_model


def gradients(model: Any) -> list[torch.Tensor]:
    torch.manual_seed(1)
    pixels_BCHW = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    model.train().get_base_model().model.get_image_features(pixels_BCHW).pooler_output.square().sum().backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_gradients_equal_eager_gradients_with_checkpointing() -> None:
    torch.manual_seed(0)
    plain = trainable_model()
    for name, weight in plain.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    compiled = copy.deepcopy(plain)
    checkpoint_activations(compiled)
    before = counters["stats"]["unique_graphs"]
    compile_model(compiled, backend="aot_eager")
    expected, actual = gradients(plain), gradients(compiled)
    assert counters["stats"]["unique_graphs"] > before
    assert len(expected) == len(actual) > 0
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_copy_of_a_compiled_model_is_not_compiled() -> None:
    model = trainable_model()
    names = model.state_dict().keys()
    compile_model(model)
    assert model.state_dict().keys() == names
    tower = next(m for name, m in copy.deepcopy(model).named_modules() if name.endswith("model.vision_tower"))
    assert tower._compiled_call_impl is None


def test_useless_or_impossible_compilation_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="`--freeze vision` each image passes it once"):
        check_can_compile("vision", torch.device("cpu"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="`--compile` needs `no-such-compiler`"):
        check_can_compile("none", torch.device("cpu"))


@pytest.mark.skipif(not os.environ.get("FLORENCE2_LONG"), reason="compiles for a minute: set FLORENCE2_LONG=1")
def test_compiled_run_has_the_losses_of_an_eager_run(tmp_path: Path) -> None:
    from florence2.demo.dataset import make_dataset

    made = make_dataset(tmp_path / "made", 8, style="tags")
    losses = []
    for compiled in (False, True):
        out = tmp_path / f"compiled-{compiled}"
        train(
            dataset=str(made), output_dir=str(out), model_id="demo", epochs=2, batch_size=4, dropout=0, compile=compiled
        )
        losses.append([json.loads(row)["loss"] for row in (out / "metrics.jsonl").read_text().splitlines()[:4]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
