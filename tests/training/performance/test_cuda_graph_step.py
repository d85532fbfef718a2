"""A graphed training step has the gradients of an eager one; the tests of graphs need a GPU."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from florence2.api import train
from florence2.cuda_graphs import CudaGraphCache
from florence2.training import trainer as trainer_module
from florence2.training.performance import cuda_graph_step
from florence2.training.performance.cuda_graph_step import PAD_TO, GraphedStep, can_use_cuda_graphs
from tests.tiny import tiny_model
from tests.training.models import trainable_model
from tests.training.test_trainer import Bench

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("parts", [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}])
def test_graphed_step_trains_the_same_weights(tmp_path: Path, rank: int, parts: dict[str, int]) -> None:
    options: dict[str, Any] = {"rank": rank, "num_train_epochs": 3, "weight_decay": 0.1, "max_grad_norm": 0.5, **parts}
    eager, graphed = (
        Bench(tmp_path, use_cuda_graphs=use_cuda_graphs, pad_to=PAD_TO, **options) for use_cuda_graphs in (False, True)
    )
    eager.trainer.train()
    graphed.trainer.train()
    assert graphed.trainer.graphed_step is not None
    expected = eager.weights()
    assert all(torch.equal(weight, expected[name]) for name, weight in graphed.weights().items())


def test_batches_of_a_shape_use_the_same_buffers() -> None:
    layer, calls = nn.Linear(3, 1), []

    def step(batch: dict[str, torch.Tensor], items: torch.Tensor) -> torch.Tensor:
        calls.append((batch["x"].data_ptr(), layer.weight.grad))
        loss = layer(batch["x"]).sum() / items
        loss.backward()
        return loss.detach()

    steps = GraphedStep(step, layer)
    losses = [steps({"x": torch.full((rows, 3), float(rows))}, torch.tensor(2)) for rows in (2, 5, 2)]
    assert losses[0] == losses[2] != losses[1]
    assert calls[0][0] == calls[2][0] != calls[1][0]
    assert calls[1][1] is calls[2][1] is layer.weight.grad, "gradient buffers do not move"
    assert layer.weight.grad.flatten().tolist() == [2 + 12.5 + 2] * 3
    layer.zero_grad()
    steps({"x": torch.ones(2, 3)}, torch.tensor(1))
    assert layer.weight.grad.flatten().tolist() == [2.0] * 3


def test_graphed_step_switches_schedule_free_back_to_training(tmp_path: Path) -> None:
    """Evaluation switches such an optimizer to its averages; a graphed step must switch it back."""
    pytest.importorskip("schedulefree")
    bench = Bench(tmp_path, use_cuda_graphs=True, optimizer={"name": "schedulefree.AdamWScheduleFree"})
    trainer = bench.trainer
    modes: list[str] = []
    trainer.graphed_step = lambda _, items: modes.append(trainer.optimizer.param_groups[0]["train_mode"]) or items
    trainer.create_optimizer_and_scheduler(4)
    trainer.optimizer.eval()
    trainer.training_step(bench.model, bench.batch(0, 1), 7)
    assert modes == [True]


def test_moved_weights_discard_the_graphs() -> None:
    layer, cleared = nn.Linear(3, 1), []

    def step(batch: dict[str, torch.Tensor], items: torch.Tensor) -> torch.Tensor:
        (layer(batch["x"]).sum() / items).backward()
        return items.clone()

    steps = GraphedStep(step, layer)
    one = {"x": torch.ones(2, 3)}, torch.tensor(1)
    steps(*one)
    steps._graphs = SimpleNamespace(num_graphs=1, clear=lambda: cleared.append(1))
    steps._check_addresses()
    assert not cleared
    layer.weight.data = layer.weight.data.clone()
    steps._check_addresses()
    steps._check_addresses()
    assert cleared == [1]


def test_cpu_has_no_cuda_graphs() -> None:
    assert not can_use_cuda_graphs(trainable_model(), "adamw_torch", checkpoints_activations=False, is_compiled=False)


@needs_gpu
@pytest.mark.parametrize(
    ("lora_args", "options", "expected"),
    [
        ((), {}, True),
        (("use_rslora=true",), {"optim": "schedule_free_adamw"}, True),
        (("use_dora=true",), {}, False),
        ((), {"optim": "galore_adamw_layerwise"}, False),
        ((), {"optim": "lomo"}, False),
        ((), {"checkpoints_activations": True}, False),
        ((), {"is_compiled": True}, False),
    ],
)
def test_cuda_graphs_are_used_for_plain_lora_only(
    lora_args: tuple[str, ...], options: dict[str, Any], expected: bool
) -> None:
    model = trainable_model(*lora_args, model=tiny_model()[0].cuda())
    default = {"optim": "adamw_torch_fused", "checkpoints_activations": False, "is_compiled": False}
    assert can_use_cuda_graphs(model, **(default | options)) == expected


@needs_gpu
def test_capture_without_memory_runs_eagerly() -> None:
    sizes, outputs = iter([1, 1 << 50, 1, 1]), []
    graphs = CudaGraphCache(lambda _: outputs.append(torch.ones(next(sizes), device="cuda")), enabled=True, min_calls=2)
    for _ in range(3):
        graphs(0)
    assert [len(output) for output in outputs] == [1, 1, 1]
    assert graphs.num_graphs == 0


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@needs_gpu
def test_graphed_eager_and_resumed_runs_are_equal_on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from florence2.demo.dataset import make_dataset

    images, graphed_steps = make_dataset(tmp_path / "images", 24, style="tags"), []
    monkeypatch.setattr(
        trainer_module, "GraphedStep", lambda *args: graphed_steps.append(GraphedStep(*args)) or graphed_steps[-1]
    )

    def run(name: str, **more: Any) -> Path:
        out = tmp_path / name
        options = {
            "epochs": 6,
            "batch_size": 4,
            "dtype": "float32",
            "rank": 4,
            "learning_rate": 1e-3,
            "log_with": "none",
        }
        options |= {"trainer_args": ("logging_steps=1",), "save_every_n_epochs": 1}
        return train(dataset=str(images), output_dir=str(out), model_id="demo", **(options | more))

    graphed = run("graphed")
    assert graphed_steps[0].num_graphs > 0
    resumed = tmp_path / "resumed"
    shutil.copytree(graphed / "checkpoint-18", resumed / "checkpoint-18")
    run("resumed", resume="auto")
    monkeypatch.setattr(cuda_graph_step, "MIN_CALLS", 10**9)
    eager = run("eager")
    assert graphed_steps[2].num_graphs == 0
    assert losses(graphed) == pytest.approx(losses(eager), rel=2e-3)
    first, *others = (load_file(out / "adapter_model.safetensors") for out in (graphed, resumed, eager))
    for other in others:
        for name, weight in first.items():
            torch.testing.assert_close(weight, other[name], rtol=1e-2, atol=1e-3)
