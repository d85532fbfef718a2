"""The compiled vision tower learns what the plain one learns, with recomputed activations as without."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from florence2 import settings_io as settings
from florence2.api import train
from florence2.config import LoraSettings, ModelSettings, TrainSettings
from florence2.errors import UserError
from florence2.training.performance.compile import check_can_compile, compile_model
from florence2.training.performance.memory import checkpoint_activations
from florence2.training.prepare_model import prepare_model_for_training
from tests.tiny import tiny_model


def gradients(learner: Any) -> list[torch.Tensor]:
    torch.manual_seed(1)
    pixels_BCHW = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    learner.train().get_base_model().model.get_image_features(pixels_BCHW).pooler_output.square().sum().backward()
    return [weight.grad for weight in learner.parameters() if weight.grad is not None]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_gradients_are_those_of_the_plain_tower_even_recomputed() -> None:
    torch.manual_seed(0)
    plain = prepare_model_for_training(tiny_model()[0], ModelSettings(), LoraSettings(dropout=0.25))
    for name, weight in plain.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    compiled = copy.deepcopy(plain)
    checkpoint_activations(compiled)
    before = counters["stats"]["unique_graphs"]
    compile_model(compiled, backend="aot_eager")
    wanted, found = gradients(plain), gradients(compiled)
    assert counters["stats"]["unique_graphs"] > before
    assert len(wanted) == len(found) > 0
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_compiled_learner_is_plain() -> None:
    learner = prepare_model_for_training(tiny_model()[0], ModelSettings(), LoraSettings())
    names = learner.state_dict().keys()
    compile_model(learner)
    assert learner.state_dict().keys() == names
    tower = next(m for name, m in copy.deepcopy(learner).named_modules() if name.endswith("model.vision_tower"))
    assert tower._compiled_call_impl is None


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(**values: Any) -> TrainSettings:
        return settings.settings_from_dict(
            TrainSettings, {"dataset": "x", "output_dir": "y", "compile": True, **values}
        )

    with pytest.raises(UserError, match="`--freeze vision` each picture is looked at once"):
        check_can_compile(asked(freeze="vision", device="cpu"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="`--compile` needs `no-such-compiler`"):
        check_can_compile(asked())
    check_can_compile(asked(compile=False))


@pytest.mark.skipif(not os.environ.get("FLORENCE2_LONG"), reason="compiles for a minute: set FLORENCE2_LONG=1")
def test_a_compiled_training_ends_where_a_plain_one_does(tmp_path: Path) -> None:
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
