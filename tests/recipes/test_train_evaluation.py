import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from florence2.api import evaluate, predict
from florence2.demo.dataset import make_dataset
from florence2.errors import UserError
from florence2.model.storage.run_metadata import read_run_metadata
from tests.training.images import run, save_calm, save_photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluation")
    save_photos(path / "photos")
    save_calm(path / "model", dropout=0.2)
    return path


@pytest.fixture(scope="module")
def tracked_run(folder: Path) -> Path:
    """Train the bundled model on boxes for two steps, with metrics, samples and trackers."""
    make_dataset(folder / "scenes", num_samples=4, seed=3)
    boxes = str(folder / "scenes" / "od.jsonl")
    values = {"dataset": boxes, "val_dataset": boxes, "task": "od", "model_id": "demo", "eval_metrics": ["f1", "map"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        more = {"log_with": "tensorboard,wandb", "sample_every_n_steps": 2, "trainer_args": ["logging_steps=1"]}
        return run(folder, "tracked", **values, **more, epochs=2, rank=1)


def validation_values(folder: Path, **more: Any) -> dict[str, Any]:
    return {"val_dataset": str(folder / "photos"), "eval_metrics": ["rouge_l"], "eval_samples": 2} | more


def read_metric(path: Path, name: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


def have_equal_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(next(path.glob("*model.safetensors"))) for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_metrics_equal_those_of_evaluate(folder: Path, tracked_run: Path) -> None:
    f1 = read_metric(tracked_run, "eval_f1")
    best = max(f1, key=lambda step: f1[step])
    assert f1[best] > 0.5
    assert have_equal_weights(tracked_run, tracked_run / f"checkpoint-{best}")
    assert read_run_metadata(tracked_run).scores["eval_f1"] == round(f1[best], 4)
    predictions = folder / "predictions.jsonl"
    scenes = folder / "scenes"
    predict(model_path=str(tracked_run), input_path=str(scenes), task="od", output_path=str(predictions), device="cpu")
    scores = evaluate(
        predictions=str(predictions),
        references=str(scenes / "od.jsonl"),
        output_path=str(folder / "scores.json"),
        bootstrap_samples=0,
    )
    (task,) = scores["tasks"].values()
    for name in ("f1", "map"):
        assert read_metric(tracked_run, f"eval_{name}")[best] == pytest.approx(task["scores"][name]["value"], abs=1e-5)


def test_evaluation_does_not_change_training(folder: Path) -> None:
    shared = {"epochs": 1, "dropout": 0.2, "val_dataset": str(folder / "photos"), "trainer_args": ["logging_steps=1"]}
    plain = run(folder, "plain", **shared)
    evaluated = run(
        folder,
        "evaluated",
        **(shared | validation_values(folder, eval_metrics=["loss", "cider"])),
        sample_every_n_steps=2,
    )
    assert have_equal_weights(plain, evaluated)
    for name in ("loss", "eval_loss"):
        assert read_metric(plain, name) == read_metric(evaluated, name)
    assert list(read_metric(evaluated, "eval_cider")) == [2]


def test_lower_is_better_for_error_rates(folder: Path) -> None:
    values = validation_values(folder, eval_metrics=["cer"], task="ocr")
    output = run(folder, "ocr", **values, epochs=2, learning_rate=3e-2, batch_size=8)
    cer = read_metric(output, "eval_cer")
    assert len(cer) == 2
    assert read_run_metadata(output).scores["eval_cer"] == round(min(cer.values()), 4)


def test_early_stopping_ends_a_run_and_survives_resume(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="florence2")
    constant: dict[str, Any] = validation_values(
        folder, learning_rate=0.0, epochs=9, early_stopping=2, save_every_n_epochs=1
    )
    output = run(folder, "constant", **constant)
    assert "stopped at step 6: 2 evaluations without a better eval rouge l" in caplog.text
    assert sorted(read_metric(output, "eval_rouge_l")) == [2, 4, 6]
    assert read_run_metadata(output).scores["best"] == "checkpoint-2"
    for start, steps in ((4, [6]), (6, [])):  # one evaluation before early stopping, and after it
        resumed_folder = folder / f"from-{start}"
        resumed_folder.mkdir()
        for step in (2, start):
            (resumed_folder / f"checkpoint-{step}").symlink_to(output / f"checkpoint-{step}")
        resumed = run(folder, resumed_folder.name, **constant, resume="auto")
        assert list(read_metric(resumed, "eval_rouge_l") if steps else []) == steps
        assert have_equal_weights(resumed, output)
        assert not (resumed / "checkpoint-8").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_metrics": ["cider"]}, "`--eval_metrics` needs a validation set"),
        ({"early_stopping": 2}, "`--early_stopping` needs a validation set"),
        ({"eval_metrics": ["sider"], "val_dataset": "0.5"}, "`--eval_metrics sider` is not a metric of these tasks"),
        ({"eval_metrics": ["cider"], "val_dataset": "0.1"}, "`cider` cannot be computed on a validation set of size 1"),
        (
            {"trainer_args": ["metric_for_best_model=loss"]},
            "`--trainer_args metric_for_best_model` has its own flag",
        ),
    ],
)
def test_invalid_evaluation_settings_are_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(folder, "refused", **values)
    assert message in caught.value.what


def test_trackers_get_annotated_images(folder: Path, tracked_run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    predictions = [json.loads(line) for line in (tracked_run / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in predictions] == [2] * 4
    (events,) = tracked_run.rglob("events.out.tfevents.*")
    events_reader = accumulator.EventAccumulator(str(events.parent), {"tensors": 0, "images": 0})
    events_reader.Reload()
    for row in predictions:
        name = row["file_name"]
        (image,) = events_reader.Images(f"samples/{name}")
        (text,) = events_reader.Tensors(f"train/samples/{name}/text_summary")
        assert text.tensor_proto.string_val[0].decode() == row["text"]
        with Image.open(tracked_run / "samples" / "step-000002" / f"{Path(name).stem}.jpg") as annotated:
            assert (annotated.width, annotated.height) == (image.width, image.height)
            with Image.open(folder / "scenes" / name) as original:
                plain = np.asarray(original.convert("RGB").resize(annotated.size), dtype=int)
            assert (np.abs(np.asarray(annotated, dtype=int) - plain).max(-1) > 80).mean() > 0.003  # boxes and labels
    assert len(list(tracked_run.glob("wandb/offline-run-*/files/media/images/samples/*.jpg"))) == 4


def test_metrics_are_logged_at_every_step(tracked_run: Path) -> None:
    for name in ("loss", "learning_rate", "grad_norm", "images_per_second"):
        assert list(read_metric(tracked_run, name)) == [1, 2], name
    for name in ("eval_loss", "eval_f1", "eval_map"):
        assert list(read_metric(tracked_run, name)) == [1, 2], name
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (events,) = tracked_run.rglob("events.out.tfevents.*")
    events_reader = accumulator.EventAccumulator(str(events.parent))
    events_reader.Reload()
    expected = {"train/loss", "train/learning_rate", "train/grad_norm", "eval/loss", "eval/f1", "eval/map"}
    assert expected <= set(events_reader.Tags()["scalars"])
    assert "train/images_per_second" in events_reader.Tags()["scalars"]
