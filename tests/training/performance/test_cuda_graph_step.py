"""A recorded step is the step it was: the same gradients, whoever gathers or drops them; graphs where a GPU is."""

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
from florence2.training import trainer as room
from florence2.training.performance import cuda_graph_step as recorded
from florence2.training.performance.cuda_graph_step import PAD_TO, GraphedStep, can_use_cuda_graphs
from tests.tiny import tiny_model
from tests.training.models import trainable_model
from tests.training.test_trainer import Bench

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("parts", [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}])
def test_what_is_learnt_is_the_same(tmp_path: Path, rank: int, parts: dict[str, int]) -> None:
    how: dict[str, Any] = {"rank": rank, "num_train_epochs": 3, "weight_decay": 0.1, "max_grad_norm": 0.5, **parts}
    plain, through = (
        Bench(tmp_path, use_cuda_graphs=use_cuda_graphs, pad_to=PAD_TO, **how) for use_cuda_graphs in (False, True)
    )
    plain.trainer.train()
    through.trainer.train()
    assert through.trainer.graphed_step is not None
    wanted = plain.weights()
    assert all(torch.equal(weight, wanted[name]) for name, weight in through.weights().items())


def test_batches_lie_where_the_first_of_their_shape_lay() -> None:
    layer, seen = nn.Linear(3, 1), []

    def step(batch: dict[str, torch.Tensor], items: torch.Tensor) -> torch.Tensor:
        seen.append((batch["x"].data_ptr(), layer.weight.grad))
        loss = layer(batch["x"]).sum() / items
        loss.backward()
        return loss.detach()

    steps = GraphedStep(step, layer)
    losses = [steps({"x": torch.full((rows, 3), float(rows))}, torch.tensor(2)) for rows in (2, 5, 2)]
    assert losses[0] == losses[2] != losses[1]
    assert seen[0][0] == seen[2][0] != seen[1][0]
    assert seen[1][1] is seen[2][1] is layer.weight.grad, "gradients stay where they are"
    assert layer.weight.grad.flatten().tolist() == [2 + 12.5 + 2] * 3
    layer.zero_grad()
    steps({"x": torch.ones(2, 3)}, torch.tensor(1))
    assert layer.weight.grad.flatten().tolist() == [2.0] * 3


def test_schedule_free_learns_between_measurements(tmp_path: Path) -> None:
    """Measuring switches such an optimizer to its averages; a recorded step must switch it back itself."""
    pytest.importorskip("schedulefree")
    bench = Bench(tmp_path, use_cuda_graphs=True, optimizer={"name": "schedulefree.AdamWScheduleFree"})
    trainer = bench.trainer
    modes: list[str] = []
    trainer.graphed_step = lambda _, items: modes.append(trainer.optimizer.param_groups[0]["train_mode"]) or items
    trainer.create_optimizer_and_scheduler(4)
    trainer.optimizer.eval()
    trainer.training_step(bench.model, bench.batch(0, 1), 7)
    assert modes == [True]


def test_weights_that_were_moved_are_looked_for() -> None:
    layer, forgotten = nn.Linear(3, 1), []

    def step(batch: dict[str, torch.Tensor], items: torch.Tensor) -> torch.Tensor:
        (layer(batch["x"]).sum() / items).backward()
        return items.clone()

    steps = GraphedStep(step, layer)
    one = {"x": torch.ones(2, 3)}, torch.tensor(1)
    steps(*one)
    steps._graphs = SimpleNamespace(num_graphs=1, clear=lambda: forgotten.append(1))
    steps._check_addresses()
    assert not forgotten
    layer.weight.data = layer.weight.data.clone()
    steps._check_addresses()
    steps._check_addresses()
    assert forgotten == [1]


def test_a_cpu_records_nothing() -> None:
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
def test_where_a_recording_finds_no_room_steps_go_on() -> None:
    sizes, taken = iter([1, 1 << 50, 1, 1]), []
    replay = CudaGraphCache(lambda _: taken.append(torch.ones(next(sizes), device="cuda")), enabled=True, min_calls=2)
    for _ in range(3):
        replay(0)
    assert [len(each) for each in taken] == [1, 1, 1]
    assert replay.num_graphs == 0


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@needs_gpu
def test_on_a_gpu_recorded_asked_for_and_resumed_are_one_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from florence2.demo.dataset import make_dataset

    images, made = make_dataset(tmp_path / "pictures", 24, style="tags"), []
    monkeypatch.setattr(room, "GraphedStep", lambda *given: made.append(GraphedStep(*given)) or made[-1])

    def run(name: str, **more: Any) -> Path:
        out = tmp_path / name
        how = {"epochs": 6, "batch_size": 4, "dtype": "float32", "rank": 4, "learning_rate": 1e-3, "log_with": "none"}
        how |= {"trainer_args": ("logging_steps=1",), "save_every_n_epochs": 1}
        return train(dataset=str(images), output_dir=str(out), model_id="demo", **(how | more))

    by_heart = run("by heart")
    assert made[0].num_graphs > 0
    again = tmp_path / "again"
    shutil.copytree(by_heart / "checkpoint-18", again / "checkpoint-18")
    run("again", resume="auto")
    monkeypatch.setattr(recorded, "MIN_CALLS", 10**9)
    asked_for = run("asked for")
    assert made[2].num_graphs == 0
    assert losses(by_heart) == pytest.approx(losses(asked_for), rel=2e-3)
    first, *others = (load_file(out / "adapter_model.safetensors") for out in (by_heart, again, asked_for))
    for other in others:
        for name, weight in first.items():
            torch.testing.assert_close(weight, other[name], rtol=1e-2, atol=1e-3)
