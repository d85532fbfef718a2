"""The build script, cut very short: every lesson runs, is resumed, and leaves a model that loads."""

from pathlib import Path

import pytest
import torch
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2.demo.build import build
from florence2.demo.scenes import make_scene
from florence2.demo.scores import iou
from florence2.demo.stages.cells import GRID, HEADS, NOT_HERE, between_knots, cell_truth
from florence2.demo.stages.lesson import Lesson


def test_every_lesson_runs_once(tmp_path: Path):
    short = ((2, 4), (2, 8), (2, 2), (2, 2))
    build(tmp_path / "model", tmp_path / "work", 0, short, num_images=20)
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "work").glob("*.pt")}
    assert set(done) == {"see.pt", "speak.pt", "together.pt", "find.pt"}
    build(tmp_path / "again", tmp_path / "work", 0, short, num_images=20)
    assert done == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "work").glob("*.pt")}
    Florence2Processor.from_pretrained(tmp_path / "model")
    first, second = (Florence2ForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("model", "again"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_lesson_cut_short_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("florence2.demo.stages.lesson.SAVE_EVERY_S", 0)

    def learn(folder: Path, stop_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 1)

        def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == stop_at:
                raise KeyboardInterrupt
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            return (layer(inputs) - inputs.sum(1, keepdim=True)).square().mean(), {}

        folder.mkdir(exist_ok=True)
        Lesson("sum", layer, loss, 20, 8, {"": 0.1}, warmup=3).run(folder)
        return layer.weight.detach()

    whole = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", stop_at=11)
    assert torch.equal(learn(tmp_path / "cut"), whole)


def test_cells_hold_what_boxes_hold():
    names = [name for name, _ in HEADS]
    for made in map(make_scene, range(50)):
        cells = cell_truth(made)
        filled = (cells.boxes[:, 0] >= 0).reshape(GRID, GRID)
        assert ((cells.kinds[:, 0] > 0).reshape(GRID, GRID) == filled).all()
        orders = cells.kinds[:, names.index("order")]
        assert set(orders[orders != NOT_HERE]) == set(range(len(made.objects)))  # everything has a cell
        letters = cells.kinds[:, names.index("letter")]
        assert (letters != NOT_HERE).any() == (made.sign is not None)


def test_knots_keep_numbers():
    shares = torch.tensor([0.0, 0.123, 0.5, 0.987, 1.0])
    weights = between_knots(shares)
    assert torch.allclose(weights.sum(-1), torch.ones(5))
    assert torch.allclose(weights @ torch.linspace(0, 1, weights.shape[-1]), shares, atol=1e-5)


def test_iou():
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
