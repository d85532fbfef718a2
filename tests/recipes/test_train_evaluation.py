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
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    save_photos(folder / "photos")
    save_calm(folder / "model", dropout=0.2)
    return folder


@pytest.fixture(scope="module")
def watched(room: Path) -> Path:
    """Train the bundled model on boxes for two steps, with all that watches it."""
    make_dataset(room / "scenes", num_samples=4, seed=3)
    boxes = str(room / "scenes" / "od.jsonl")
    given = {"dataset": boxes, "val_dataset": boxes, "task": "od", "model_id": "demo", "eval_metrics": ["f1", "map"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        more = {"log_with": "tensorboard,wandb", "sample_every_n_steps": 2, "trainer_args": ["logging_steps=1"]}
        return run(room, "watched", **given, **more, epochs=2, rank=1)


def held(room: Path, **more: Any) -> dict[str, Any]:
    return {"val_dataset": str(room / "photos"), "eval_metrics": ["rouge_l"], "eval_samples": 2} | more


def measured(folder: Path, name: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


def same(one: Path, other: Path) -> bool:
    a, b = (load_file(next(folder.glob("*model.safetensors"))) for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_scores_are_those_of_evaluate(room: Path, watched: Path) -> None:
    f1 = measured(watched, "eval_f1")
    best = max(f1, key=lambda step: f1[step])
    assert f1[best] > 0.5
    assert same(watched, watched / f"checkpoint-{best}")
    assert read_run_metadata(watched).scores["eval_f1"] == round(f1[best], 4)
    said = room / "said.jsonl"
    scenes = room / "scenes"
    predict(model_path=str(watched), input_path=str(scenes), task="od", output_path=str(said), device="cpu")
    told = evaluate(
        predictions=str(said),
        references=str(scenes / "od.jsonl"),
        output_path=str(room / "scores.json"),
        bootstrap_samples=0,
    )
    (task,) = told["tasks"].values()
    for name in ("f1", "map"):
        assert measured(watched, f"eval_{name}")[best] == pytest.approx(task["scores"][name]["value"], abs=1e-5)


def test_being_asked_changes_nothing(room: Path) -> None:
    shared = {"epochs": 1, "dropout": 0.2, "val_dataset": str(room / "photos"), "trainer_args": ["logging_steps=1"]}
    plain = run(room, "plain", **shared)
    asked = run(room, "asked", **(shared | held(room, eval_metrics=["loss", "cider"])), sample_every_n_steps=2)
    assert same(plain, asked)
    for name in ("loss", "eval_loss"):
        assert measured(plain, name) == measured(asked, name)
    assert list(measured(asked, "eval_cider")) == [2]


def test_less_is_better_where_it_is(room: Path) -> None:
    given = held(room, eval_metrics=["cer"], task="ocr")
    out = run(room, "read", **given, epochs=2, learning_rate=3e-2, batch_size=8)
    cer = measured(out, "eval_cer")
    assert len(cer) == 2
    assert read_run_metadata(out).scores["eval_cer"] == round(min(cer.values()), 4)


def test_patience_ends_and_is_resumed(room: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="florence2")
    still: dict[str, Any] = held(room, learning_rate=0.0, epochs=9, early_stopping=2, save_every_n_epochs=1)
    out = run(room, "still", **still)
    assert "stopped at step 6: 2 evaluations without a better eval rouge l" in caplog.text
    assert sorted(measured(out, "eval_rouge_l")) == [2, 4, 6]
    assert read_run_metadata(out).scores["best"] == "checkpoint-2"
    for start, steps in ((4, [6]), (6, [])):  # half of the patience gone, and all of it
        again = room / f"from-{start}"
        again.mkdir()
        for step in (2, start):
            (again / f"checkpoint-{step}").symlink_to(out / f"checkpoint-{step}")
        went = run(room, again.name, **still, resume="auto")
        assert list(measured(went, "eval_rouge_l") if steps else []) == steps
        assert same(went, out)
        assert not (went / "checkpoint-8").exists()


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"eval_metrics": ["cider"]}, "`--eval_metrics` needs pictures to measure on"),
        ({"early_stopping": 2}, "`--early_stopping` needs pictures to measure on"),
        ({"eval_metrics": ["sider"], "val_dataset": "0.5"}, "`--eval_metrics sider` is not a metric of these tasks"),
        ({"eval_metrics": ["cider"], "val_dataset": "0.1"}, "`cider` cannot be computed on a validation set of size 1"),
        (
            {"trainer_args": ["metric_for_best_model=loss"]},
            "`--trainer_args metric_for_best_model` has its own flag",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(room: Path, values: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError) as caught:
        run(room, "refused", **values)
    assert what in caught.value.what


def test_trackers_get_drawings(room: Path, watched: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    said = [json.loads(line) for line in (watched / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in said] == [2] * 4
    (events,) = watched.rglob("events.out.tfevents.*")
    read = accumulator.EventAccumulator(str(events.parent), {"tensors": 0, "images": 0})
    read.Reload()
    for row in said:
        name = row["file_name"]
        (image,) = read.Images(f"samples/{name}")
        (words,) = read.Tensors(f"train/samples/{name}/text_summary")
        assert words.tensor_proto.string_val[0].decode() == row["text"]
        with Image.open(watched / "samples" / "step-000002" / f"{Path(name).stem}.jpg") as drawn:
            assert (drawn.width, drawn.height) == (image.width, image.height)
            with Image.open(room / "scenes" / name) as bare:
                plain = np.asarray(bare.convert("RGB").resize(drawn.size), dtype=int)
            assert (np.abs(np.asarray(drawn, dtype=int) - plain).max(-1) > 80).mean() > 0.003  # boxes and labels
    assert len(list(watched.glob("wandb/offline-run-*/files/media/images/samples/*.jpg"))) == 4


def test_every_number_is_reported(watched: Path) -> None:
    for name in ("loss", "learning_rate", "grad_norm", "pictures_per_second"):
        assert list(measured(watched, name)) == [1, 2], name
    for name in ("eval_loss", "eval_f1", "eval_map"):
        assert list(measured(watched, name)) == [1, 2], name
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (events,) = watched.rglob("events.out.tfevents.*")
    read = accumulator.EventAccumulator(str(events.parent))
    read.Reload()
    shown = {"train/loss", "train/learning_rate", "train/grad_norm", "eval/loss", "eval/f1", "eval/map"}
    assert shown <= set(read.Tags()["scalars"])
    assert "train/pictures_per_second" in read.Tags()["scalars"]
