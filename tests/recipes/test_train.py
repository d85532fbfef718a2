import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import florence2.recipes.train as recipe
from florence2 import settings_io as settings
from florence2.config import TrainSettings
from florence2.data.resolve import resolve_images
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.errors import UserError
from florence2.model.load import load
from florence2.model.storage.run_metadata import read_run_metadata
from florence2.training.callbacks.signals import TrainingInterrupted
from florence2.training.trainer import Florence2Trainer
from tests.training.images import CAPTIONS, run, save_calm, save_photos


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold photos, a model without chance, and a short training with LoRA whose chance is all on."""
    folder = tmp_path_factory.mktemp("train")
    save_photos(folder / "photos")
    save_calm(folder / "model")
    save_calm(folder / "lively", dropout=0.2)
    run(folder, "whole", **LIVELY, model_id=str(folder / "lively"))
    return folder


LIVELY: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 1,
    "gradient_accumulation_steps": 2,
    "save_every_n_steps": 3,
    "shuffle_captions": True,
    "caption_args": ["caption_separator= ", "caption_dropout_rate=0.2"],
    "val_dataset": "0.25",
    "trainer_args": ["logging_steps=1"],
}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def learnt(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors"
    return load_file(folder / name)


def same(one: Path, other: Path) -> bool:
    a, b = learnt(one), learnt(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_full_fine_tuning_repeats_all_captions(room: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = run(room, "full", rank=0, batch_size=8, epochs=60, learning_rate=5e-3, save_every_n_epochs=60)
    model, processor = load(out, device="cpu")
    found = resolve_images(str(room / "photos"), task=read_run_metadata(out).task)
    with GenerateEngine(model, processor, EngineConfig(batch_size=8)) as engine:
        assert [prediction.text for prediction in engine.run(found.samples)] == list(CAPTIONS)
    assert rows(out)[-1]["loss"] < 0.2
    assert capfd.readouterr().out == ""  # stdout is data, and there is none


def test_lora_lowers_the_loss_and_moves_nothing_else(room: Path) -> None:
    out = run(room, "lora", batch_size=8, epochs=8, learning_rate=3e-2, dropout=0.0, trainer_args=["logging_steps=1"])
    losses = [row["loss"] for row in rows(out)]
    assert losses[-1] < 0.8 * losses[0]
    adapter = learnt(out)
    assert all(".lora_A." in name or ".lora_B." in name for name in adapter)
    assert all(weight.abs().sum() > 0 for name, weight in adapter.items() if ".lora_B." in name)  # they begin as zeros
    assert (room / "model" / "model.safetensors").exists()


def test_what_is_left_behind(room: Path) -> None:
    out = room / "whole"
    record = read_run_metadata(out)
    assert record.base == str(room / "lively")
    assert (record.task, record.prompt) == (
        "<MORE_DETAILED_CAPTION>",
        "Describe with a paragraph what is shown in the image.",
    )
    assert record.settings["rank"] == 4
    assert record.data == {
        "dataset": str(room / "photos"),
        "pictures": 6,
        "captions": 6,
        "held_out": 2,
        "tasks": ["<MORE_DETAILED_CAPTION>"],
    }
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(room / "lively")
    card = (out / "README.md").read_text()
    assert "base_model: " in card
    assert "| eval_loss |" in card
    with Image.open(out / "training_curve.png") as curve:
        assert curve.getcolors(1 << 16)[0][0] < curve.width * curve.height
    assert not (out / ".unfinished").exists()
    load(out, device="cpu")
    load(out / "checkpoint-3", device="cpu")
    assert read_run_metadata(out / "checkpoint-3").task == record.task


def test_the_result_is_the_best_of_what_was_measured(room: Path) -> None:
    out = room / "whole"
    measured = {row["step"]: row["eval_loss"] for row in rows(out) if "eval_loss" in row}
    assert sorted(measured) == [3, 6]
    best = min(measured, key=lambda step: measured[step])
    assert read_run_metadata(out).scores["best"] == f"checkpoint-{best}"
    assert same(out, out / f"checkpoint-{best}")


def test_stopped_and_resumed_is_never_stopped(room: Path) -> None:
    shutil.copytree(room / "whole" / "checkpoint-3", room / "again" / "checkpoint-3")
    out = run(room, "again", **LIVELY, model_id=str(room / "lively"), resume="auto")
    assert same(out / "checkpoint-6", room / "whole" / "checkpoint-6")
    assert same(out, room / "whole")
    later = [row for row in rows(room / "whole") if row["step"] > 3]
    for mine, theirs in zip(rows(out), later, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine.get("loss") == theirs.get("loss")
        assert mine.get("eval_loss") == theirs.get("eval_loss")


def test_mixed_and_changed_images_go_on_as_if_never_stopped(room: Path) -> None:
    given: dict[str, Any] = {
        "model_id": str(room / "lively"),
        "dataset": [str(room / "photos"), str(room / "mixed.jsonl")],
        "sampling_weights": ["od=1.5", "more_detailed_caption=0.25"],
        "augment": ["hflip=0.5", "crop=0.5", "scale=0.6,1.2", "order=shuffle"],
        "freeze": "vision",
        "epochs": 2,
        "save_every_n_epochs": 1,
    }
    rows = [
        {"file_name": f"photos/{n}.png", "task": "od", "answer": {"bboxes": [[9, 9, 40, 40]], "labels": ["sun"]}}
        for n in range(6)
    ]
    (room / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run(room, "mixed", **given)
    assert [path.name for path in sorted(out.glob("checkpoint-*"))] == ["checkpoint-3", "checkpoint-6"]  # 11 of 4 each
    shutil.copytree(out / "checkpoint-3", room / "mixed again" / "checkpoint-3")
    again = run(room, "mixed again", **given, num_workers=1, resume="auto")
    assert same(again, out)
    assert not same(out / "checkpoint-3", out)


def test_another_seed_is_another_training(room: Path) -> None:
    out = run(room, "seeded", **LIVELY, model_id=str(room / "lively"), seed=1)
    assert not same(out, room / "whole")


def test_sigterm_saves_and_says_how_to_go_on(room: Path) -> None:
    out = room / "stopped"

    def stop_after_two_steps() -> None:
        while not (out / "metrics.jsonl").exists() or len(rows(out)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop_after_two_steps, daemon=True).start()
    with pytest.raises(TrainingInterrupted) as caught:
        run(room, "stopped", epochs=50, trainer_args=["logging_steps=1"])
    assert signal.getsignal(signal.SIGTERM) == before
    assert "stopped at step " in caught.value.what
    assert " --resume auto " in caught.value.hint
    assert f"--output_dir {out}" in caught.value.hint
    step = rows(out)[-1]["step"]
    assert (out / f"checkpoint-{step}" / "optimizer.pt").exists()
    assert not (out / "adapter_model.safetensors").exists()


def test_wandb_keeps_its_files_offline(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = run(room, "wandb", log_with="wandb")
    kept = list((out / "wandb").glob("offline-run-*/*.wandb"))
    assert len(kept) == 1
    assert kept[0].stat().st_size > 1000


def test_tensorboard_can_be_read_back(room: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = run(room, "board", log_with="tensorboard", trainer_args=["logging_steps=1"])
    (events,) = out.rglob("events.out.tfevents.*")
    read = accumulator.EventAccumulator(str(events.parent))
    read.Reload()
    shown = [event.value for event in read.Scalars("train/loss")]
    assert shown == pytest.approx([row["loss"] for row in rows(out)], rel=1e-5)


def test_samples_are_shown_and_change_nothing(room: Path) -> None:
    shared = {"epochs": 2, "freeze": "vision", "model_id": str(room / "lively"), "dropout": 0.2}
    plain, shown = run(room, "plain", **shared), run(room, "shown", **shared, sample_every_n_epochs=1)
    said = [json.loads(line) for line in (shown / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["file_name"]) for row in said] == [(s, f"{n}.png") for s in (2, 4) for n in range(4)]
    assert same(plain, shown)
    assert not (shown / ".features").exists()  # nothing that sees learns: features were kept, and are cleared


def test_an_adapter_can_be_trained_on(room: Path) -> None:
    out = run(room, "further", model_id=str(room / "whole"), learning_rate=1e-2)
    assert learnt(out).keys() == learnt(room / "whole").keys()
    assert not same(out, room / "whole")
    assert read_run_metadata(out).base == str(room / "lively")


def test_weights_that_break_leave_the_state_from_before(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Florence2Trainer.compute_loss

    def broken_after_two(self: Florence2Trainer, *given: Any, **named: Any) -> Any:
        return honest(self, *given, **named) * (1 if self.state.global_step < 2 else float("nan"))

    monkeypatch.setattr(Florence2Trainer, "compute_loss", broken_after_two)
    with pytest.raises(UserError, match="steps 3 to 22 had no finite gradient") as raised:
        run(room, "broken", epochs=20, batch_size=4, save_every_n_steps=1, trainer_args=["save_total_limit=2"])
    monkeypatch.undo()
    good = room / "broken" / "checkpoint-1"
    assert f"`--model_id {good}` starts from the last finite" in (raised.value.hint or "")
    assert sorted(path.name for path in good.parent.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    out = run(room, "mended", model_id=str(good), epochs=1, batch_size=4, trainer_args=["logging_steps=1"])
    assert all(0 < row["grad_norm"] < 1e3 for row in rows(out) if "grad_norm" in row)


def test_broken_steps_at_the_end_are_told(room: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="florence2")
    out = run(room, "short", epochs=4, batch_size=4, learning_rate=1e30, optim="sgd")
    broken = read_run_metadata(out).scores["skipped_steps"]
    assert broken > 1
    assert f"the last {broken} steps had no finite gradient" in caplog.text


def test_preview_draws_what_the_model_sees_where_images_are_changed(room: Path) -> None:
    out = run(room, "drawn", preview=2, augment=["hflip=0.5", "scale=0.5,0.8"])
    assert [path.name for path in out.iterdir()] == ["preview.html"]
    assert (out / "preview.html").read_text().count("data:image/jpeg") == 6


def test_preview_prints_targets_and_trains_nothing(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(room, "preview", preview=2, shuffle_captions=True, caption_args=["caption_separator= "])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("0.png: Describe")
    assert {tuple(sorted(line.split(": ")[1].split())) for line in lines[1:4]} == {("red", "sun")}
    assert not (room / "preview").exists()


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"dataset": "/nowhere"}, "/nowhere"),
        ({"model_id": "/nowhere"}, "/nowhere"),
        ({"optim": "adamm"}, "`--optim adamm` is not known"),
        ({"optim": "torch.optim.Nothing"}, "`--optim torch.optim.Nothing` cannot be imported"),
        ({"optimizer_args": ["beta=1"]}, "`adamw_torch_fused` has no argument `beta`"),
        ({"lr_scheduler_type": "cosin"}, "`--lr_scheduler_type cosin` is not known"),
        ({"trainer_args": ["warmup=3"]}, "`--trainer_args` has no `warmup`"),
        ({"trainer_args": ["learning_rate=3"]}, "`--trainer_args learning_rate` has its own flag"),
        ({"lora_args": ["rsloraa=true"]}, "`--lora_args` has no `rsloraa`"),
        (
            {"trainer_args": ['accelerator_config={"dispatch_batches": true}']},
            "batches are made by each process for itself",
        ),
        ({"lora_args": ["r=8"]}, "`--lora_args r` has its own flag"),
        ({"target_modules": ["nothing"]}, "target modules that match no layer: `nothing`"),
        ({"target_modules": ["vision"], "freeze": "vision"}, "all `--target_modules` are in the frozen component"),
        ({"val_dataset": "2"}, "`--val_dataset 2` is no fraction"),
        ({"log_with": "tensorbord"}, "`--log_with tensorbord` is not known"),
        ({"resume": "/nowhere"}, "`--resume /nowhere` does not exist"),
        ({"learn_rate": 1}, "`learn_rate` is not a setting of TrainSettings"),
        ({"caption_args": ["shuffle=true"]}, "`--caption_args` has no `shuffle`"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused_before_anything_is_written(room: Path, values: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError) as caught:
        run(room, "refused", **values)
    assert what in caught.value.what
    assert "\n" not in caught.value.what
    assert not list((room / "refused").glob("**/*"))


def test_an_earlier_training_is_not_overwritten(room: Path) -> None:
    before = (room / "whole" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a run already") as caught:
        run(room, "whole")
    assert "--resume auto" in caught.value.hint
    assert (room / "whole" / "adapter_model.safetensors").read_bytes() == before


def test_other_weights_do_not_go_on(room: Path) -> None:
    with pytest.raises(UserError, match="was trained with `--rank 4`, not `8`"):
        run(room, "whole", **LIVELY, model_id=str(room / "lively"), resume="auto", rank=8)


@pytest.mark.parametrize("recomputing", [False, True])
def test_the_allocator_keeps_memory_only_where_time_counts_for_more(
    recomputing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned: list[bool] = []
    monkeypatch.setattr(recipe, "tune_allocator", lambda: tuned.append(True))
    monkeypatch.setattr(recipe, "run_train", lambda _: None)
    given = {"dataset": "d", "output_dir": "o", "gradient_checkpointing": recomputing}
    assert recipe.main(settings.settings_from_dict(TrainSettings, given)) == 0
    assert tuned == ([] if recomputing else [True])
