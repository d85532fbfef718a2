"""A very short pre-training: every stage runs, resumes, and the result loads in transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2.demo.scenes import make_scene
from florence2.demo.sheet import all_emoji, open_sheet
from tools.demo_model.build import build
from tools.demo_model.finetune import FinetuningRecipe, finetune, training_scenes
from tools.demo_model.pack_emoji import MAX_CORNERS, MIN_AREA_CHANGE, simplify, trace_outline
from tools.demo_model.pretraining.cells import GRID_SIZE, HEADS, IGNORE_INDEX, cell_labels, knot_weights
from tools.demo_model.pretraining.stage import Stage
from tools.demo_model.scores import BUNDLED_MODEL, iou


def test_build_runs_every_stage_once(tmp_path: Path):
    steps = ((2, 4), (2, 8), (2, 2), (2, 2))
    build(tmp_path / "model", tmp_path / "work", 0, steps, num_images=20)
    written_at = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "work").glob("*.pt")}
    assert set(written_at) == {"vision.pt", "language.pt", "joint.pt", "grounding.pt"}
    build(tmp_path / "again", tmp_path / "work", 0, steps, num_images=20)
    assert written_at == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "work").glob("*.pt")}
    Florence2Processor.from_pretrained(tmp_path / "model")
    first, second = (Florence2ForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("model", "again"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_interrupted_stage_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tools.demo_model.pretraining.stage.SAVE_INTERVAL_S", 0)

    def train(folder: Path, interrupt_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 1)

        def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == interrupt_at:
                raise KeyboardInterrupt
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            return (layer(inputs) - inputs.sum(1, keepdim=True)).square().mean(), {}

        folder.mkdir(exist_ok=True)
        Stage("sum", layer, loss, 20, 8, {"": 0.1}, warmup_steps=3).run(folder)
        return layer.weight.detach()

    uninterrupted = train(tmp_path / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", interrupt_at=11)
    assert torch.equal(train(tmp_path / "interrupted"), uninterrupted)


def test_cell_labels_cover_every_object():
    names = [name for name, _ in HEADS]
    for scene in map(make_scene, range(50)):
        labels = cell_labels(scene)
        has_box = (labels.boxes[:, 0] >= 0).reshape(GRID_SIZE, GRID_SIZE)
        assert ((labels.classes[:, 0] > 0).reshape(GRID_SIZE, GRID_SIZE) == has_box).all()
        orders = labels.classes[:, names.index("order")]
        assert set(orders[orders != IGNORE_INDEX]) == set(range(len(scene.objects)))
        letters = labels.classes[:, names.index("letter")]
        assert (letters != IGNORE_INDEX).any() == (scene.sign is not None)


def test_knot_weights_preserve_values():
    values = torch.tensor([0.0, 0.123, 0.5, 0.987, 1.0])
    weights = knot_weights(values)
    assert torch.allclose(weights.sum(-1), torch.ones(5))
    assert torch.allclose(weights @ torch.linspace(0, 1, weights.shape[-1]), values, atol=1e-5)


def test_iou():
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_outlines_follow_from_the_sheet():
    for emoji in all_emoji():
        left, top, right, bottom = emoji.box
        mask = np.asarray(open_sheet().crop(emoji.box))[..., 3] >= 128
        corners = simplify(trace_outline(mask), MAX_CORNERS, MIN_AREA_CHANGE)
        width, height = right - left, bottom - top
        expected = {(round((x + 0.5) / width, 3), round((y + 0.5) / height, 3)) for x, y in corners}
        assert set(emoji.outline) == expected, emoji.name


def test_finetuning_changes_only_the_language_model(tmp_path: Path):
    scenes = training_scenes(20, ["corn"])
    assert sum("corn" in [obj.name for obj in scene.objects] for scene in scenes) >= 8
    finetune(BUNDLED_MODEL, tmp_path / "model", tmp_path / "work", scenes, FinetuningRecipe(max_steps=2))
    before, after = (load_file(folder / "model.safetensors") for folder in (BUNDLED_MODEL, tmp_path / "model"))
    assert {name: weight.dtype for name, weight in after.items()} == {name: w.dtype for name, w in before.items()}
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed
    assert all(name.startswith("model.language_model.") for name in changed)
    for name in ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (BUNDLED_MODEL / name).read_bytes(), name
