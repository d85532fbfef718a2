import importlib
import io
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import florence2.recipes.train as train_recipe
from florence2 import settings_io as settings
from florence2.config import TrainSettings
from florence2.data.resolve import resolve_images
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.errors import UserError
from florence2.model.load import load
from florence2.model.storage.run_metadata import read_run_metadata
from florence2.training.callbacks.signals import TrainingInterrupted
from florence2.training.trackers import _has_wandb_login
from florence2.training.trainer import Florence2Trainer
from tests.training.images import CAPTIONS, run, save_calm, save_photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make photos, models without and with dropout, and a short LoRA run with all kinds of randomness."""
    path = tmp_path_factory.mktemp("train")
    save_photos(path / "photos")
    save_calm(path / "model")
    save_calm(path / "dropout", dropout=0.2)
    run(path, "uninterrupted", **SEEDED_VALUES, model_id=str(path / "dropout"))
    return path


SEEDED_VALUES: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 1,
    "gradient_accumulation_steps": 2,
    "save_every_n_steps": 3,
    "shuffle_captions": True,
    "caption_args": ["caption_separator= ", "caption_dropout_rate=0.2"],
    "val_dataset": "0.25",
    "trainer_args": ["logging_steps=1"],
}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (path / "adapter_config.json").exists() else "model.safetensors"
    return load_file(path / name)


def have_equal_weights(first: Path, second: Path) -> bool:
    a, b = read_weights(first), read_weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_full_fine_tuning_memorizes_captions(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = run(folder, "full", rank=0, batch_size=8, epochs=60, learning_rate=5e-3, save_every_n_epochs=60)
    model, processor = load(output, device="cpu")
    found = resolve_images(str(folder / "photos"), task=read_run_metadata(output).task)
    with GenerateEngine(model, processor, EngineConfig(batch_size=8)) as engine:
        assert [prediction.text for prediction in engine.run(found.samples)] == list(CAPTIONS)
    assert read_metrics(output)[-1]["loss"] < 0.2
    assert capfd.readouterr().out == ""  # stdout is for data


def test_lora_lowers_the_loss_and_trains_only_the_adapter(folder: Path) -> None:
    output = run(
        folder, "lora", batch_size=8, epochs=8, learning_rate=3e-2, dropout=0.0, trainer_args=["logging_steps=1"]
    )
    losses = [row["loss"] for row in read_metrics(output)]
    assert losses[-1] < 0.8 * losses[0]
    adapter_weights = read_weights(output)
    assert all(".lora_A." in name or ".lora_B." in name for name in adapter_weights)
    assert all(
        weight.abs().sum() > 0 for name, weight in adapter_weights.items() if ".lora_B." in name
    )  # initialized to zero
    assert (folder / "model" / "model.safetensors").exists()


def test_run_writes_metadata_card_plot_and_checkpoints(folder: Path) -> None:
    output = folder / "uninterrupted"
    metadata = read_run_metadata(output)
    assert metadata.base == str(folder / "dropout")
    assert (metadata.task, metadata.prompt) == (
        "<MORE_DETAILED_CAPTION>",
        "Describe with a paragraph what is shown in the image.",
    )
    assert metadata.settings["rank"] == 4
    assert metadata.data == {
        "dataset": str(folder / "photos"),
        "num_images": 6,
        "num_samples": 6,
        "num_eval_samples": 2,
        "tasks": ["<MORE_DETAILED_CAPTION>"],
        "samples_per_step": 2,
        "fingerprint": metadata.data["fingerprint"],
    }
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder / "dropout"
    )
    model_card = (output / "README.md").read_text()
    assert "base_model: " in model_card
    assert "| eval_loss |" in model_card
    with Image.open(output / "training_curve.png") as plot:
        assert plot.getcolors(1 << 16)[0][0] < plot.width * plot.height
    assert not (output / ".unfinished").exists()
    load(output, device="cpu")
    load(output / "checkpoint-3", device="cpu")
    assert read_run_metadata(output / "checkpoint-3").task == metadata.task


def test_result_is_the_best_checkpoint(folder: Path) -> None:
    output = folder / "uninterrupted"
    eval_losses = {row["step"]: row["eval_loss"] for row in read_metrics(output) if "eval_loss" in row}
    assert sorted(eval_losses) == [3, 6]
    best = min(eval_losses, key=lambda step: eval_losses[step])
    assert read_run_metadata(output).scores["best"] == f"checkpoint-{best}"
    assert have_equal_weights(output, output / f"checkpoint-{best}")


def test_resumed_run_equals_uninterrupted_run(folder: Path) -> None:
    shutil.copytree(folder / "uninterrupted" / "checkpoint-3", folder / "resumed" / "checkpoint-3")
    output = run(folder, "resumed", **SEEDED_VALUES, model_id=str(folder / "dropout"), resume="auto")
    assert have_equal_weights(output / "checkpoint-6", folder / "uninterrupted" / "checkpoint-6")
    assert have_equal_weights(output, folder / "uninterrupted")
    later_rows = [row for row in read_metrics(folder / "uninterrupted") if row["step"] > 3]
    for resumed, uninterrupted in zip(read_metrics(output), later_rows, strict=True):
        assert resumed["step"] == uninterrupted["step"]
        assert resumed.get("loss") == uninterrupted.get("loss")
        assert resumed.get("eval_loss") == uninterrupted.get("eval_loss")


def test_resumed_run_with_weights_and_augmentation_equals_uninterrupted_run(folder: Path) -> None:
    values: dict[str, Any] = {
        "model_id": str(folder / "dropout"),
        "dataset": [str(folder / "photos"), str(folder / "mixed.jsonl")],
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
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = run(folder, "mixed", **values)
    assert [path.name for path in sorted(output.glob("checkpoint-*"))] == [
        "checkpoint-3",
        "checkpoint-6",
    ]  # 11 of 4 each
    shutil.copytree(output / "checkpoint-3", folder / "mixed resumed" / "checkpoint-3")
    resumed = run(folder, "mixed resumed", **values, num_workers=1, resume="auto")
    assert have_equal_weights(resumed, output)
    assert not have_equal_weights(output / "checkpoint-3", output)


def test_other_seed_gives_other_weights(folder: Path) -> None:
    output = run(folder, "seeded", **SEEDED_VALUES, model_id=str(folder / "dropout"), seed=1)
    assert not have_equal_weights(output, folder / "uninterrupted")


def test_sigterm_saves_a_checkpoint_and_prints_the_resume_command(folder: Path) -> None:
    output = folder / "stopped"

    def stop_after_two_steps() -> None:
        while not (output / "metrics.jsonl").exists() or len(read_metrics(output)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop_after_two_steps, daemon=True).start()
    with pytest.raises(TrainingInterrupted) as caught:
        run(folder, "stopped", epochs=50, trainer_args=["logging_steps=1"])
    assert signal.getsignal(signal.SIGTERM) == before
    assert "stopped at step " in caught.value.what
    assert " --resume auto " in caught.value.hint
    assert f"--output_dir {output}" in caught.value.hint
    step = read_metrics(output)[-1]["step"]
    assert (output / f"checkpoint-{step}" / "optimizer.pt").exists()
    assert not (output / "adapter_model.safetensors").exists()


def test_wandb_without_a_login_writes_an_offline_run_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(folder / "wandb-config"))
    monkeypatch.setenv("NETRC", str(folder / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    output = run(folder, "wandb", log_with="wandb")
    assert any("no login of Weights & Biases" in line for line in caplog.messages)
    importlib.import_module(
        "wandb"
    ).teardown()  # at the end of a process: waits until the service of wandb has written the file
    run_files = list((output / "wandb").glob("offline-run-*/*.wandb"))
    assert len(run_files) == 1
    assert run_files[0].stat().st_size > 1000


def test_login_of_wandb_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    settings = SimpleNamespace(mode="online", api_key=None, base_url="https://wandb.example.org")
    assert not _has_wandb_login(settings)
    (tmp_path / "netrc").write_text("machine elsewhere.example.org login user password secret\n")
    assert not _has_wandb_login(settings)
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret\n")
    assert _has_wandb_login(settings)
    (tmp_path / "netrc").unlink()
    assert _has_wandb_login(SimpleNamespace(mode="online", api_key="secret", base_url=""))
    assert _has_wandb_login(SimpleNamespace(mode="offline", api_key=None, base_url=""))


def test_tensorboard_logs_the_loss(folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = run(folder, "board", log_with="tensorboard", trainer_args=["logging_steps=1"])
    (events,) = output.rglob("events.out.tfevents.*")
    read = accumulator.EventAccumulator(str(events.parent))
    read.Reload()
    sampled = [event.value for event in read.Scalars("train/loss")]
    assert sampled == pytest.approx([row["loss"] for row in read_metrics(output)], rel=1e-5)


def test_sampling_does_not_change_weights(folder: Path) -> None:
    shared = {"epochs": 2, "freeze": "vision", "model_id": str(folder / "dropout"), "dropout": 0.2}
    plain, sampled = run(folder, "plain", **shared), run(folder, "sampled", **shared, sample_every_n_epochs=1)
    sample_rows = [json.loads(line) for line in (sampled / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["file_name"]) for row in sample_rows] == [
        (s, f"{n}.png") for s in (2, 4) for n in range(4)
    ]
    assert have_equal_weights(plain, sampled)
    assert not (sampled / ".features").exists()  # the cache of the frozen vision component is removed


def test_adapter_can_be_trained_further(folder: Path) -> None:
    output = run(folder, "further", model_id=str(folder / "uninterrupted"), learning_rate=1e-2)
    assert read_weights(output).keys() == read_weights(folder / "uninterrupted").keys()
    assert not have_equal_weights(output, folder / "uninterrupted")
    assert read_run_metadata(output).base == str(folder / "dropout")


def test_non_finite_gradients_stop_the_run_at_the_last_finite_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_loss = Florence2Trainer.compute_loss

    def nan_loss_after_two_steps(self: Florence2Trainer, *args: Any, **kwargs: Any) -> Any:
        return compute_loss(self, *args, **kwargs) * (1 if self.state.global_step < 2 else float("nan"))

    monkeypatch.setattr(Florence2Trainer, "compute_loss", nan_loss_after_two_steps)
    with pytest.raises(UserError, match="steps 3 to 22 had no finite gradient") as caught:
        run(folder, "broken", epochs=20, batch_size=4, save_every_n_steps=1, trainer_args=["save_total_limit=2"])
    monkeypatch.undo()
    checkpoint = folder / "broken" / "checkpoint-1"
    assert f"`--model_id {checkpoint}` starts from the last finite" in (caught.value.hint or "")
    assert sorted(path.name for path in checkpoint.parent.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    output = run(
        folder, "restarted", model_id=str(checkpoint), epochs=1, batch_size=4, trainer_args=["logging_steps=1"]
    )
    assert all(0 < row["grad_norm"] < 1e3 for row in read_metrics(output) if "grad_norm" in row)


def test_skipped_steps_at_the_end_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="florence2")
    output = run(folder, "short", epochs=4, batch_size=4, learning_rate=1e30, optim="sgd")
    num_skipped = read_run_metadata(output).scores["skipped_steps"]
    assert num_skipped > 1
    assert f"the last {num_skipped} steps had no finite gradient" in caplog.text


def test_preview_draws_augmented_images(folder: Path) -> None:
    output = run(folder, "preview_page", preview=2, augment=["hflip=0.5", "scale=0.5,0.8"])
    assert [path.name for path in output.iterdir()] == ["preview.html"]
    assert (output / "preview.html").read_text().count("data:image/jpeg") == 6


def test_preview_prints_targets_without_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "preview", preview=2, shuffle_captions=True, caption_args=["caption_separator= "])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("0.png: Describe")
    assert {tuple(sorted(line.split(": ")[1].split())) for line in lines[1:4]} == {("red", "sun")}
    assert not (folder / "preview").exists()


@pytest.mark.parametrize(
    ("values", "message"),
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
            "each process makes its own batches",
        ),
        ({"lora_args": ["r=8"]}, "`--lora_args r` has its own flag"),
        ({"target_modules": ["nothing"]}, "target modules that match no layer: `nothing`"),
        ({"target_modules": ["vision"], "freeze": "vision"}, "all `--target_modules` are in the frozen component"),
        ({"val_dataset": "2"}, "`--val_dataset 2` is not a fraction"),
        ({"log_with": "tensorbord"}, "`--log_with tensorbord` is not known"),
        ({"resume": "/nowhere"}, "`--resume /nowhere` does not exist"),
        ({"caption_args": ["shuffle=true"]}, "`--caption_args` has no `shuffle`"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_invalid_settings_are_refused_before_writing(folder: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(folder, "refused", **values)
    assert message in caught.value.what
    assert "\n" not in caught.value.what
    assert not list((folder / "refused").glob("**/*"))


def test_earlier_run_is_not_overwritten(folder: Path) -> None:
    before = (folder / "uninterrupted" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a run already") as caught:
        run(folder, "uninterrupted")
    assert "--resume auto" in caught.value.hint
    assert (folder / "uninterrupted" / "adapter_model.safetensors").read_bytes() == before


def test_incompatible_checkpoint_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="was trained with `--rank 4`, not `8`"):
        run(folder, "uninterrupted", **SEEDED_VALUES, model_id=str(folder / "dropout"), resume="auto", rank=8)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_allocator_is_tuned_unless_gradient_checkpointing(
    gradient_checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(train_recipe, "tune_allocator", lambda: calls.append(True))
    monkeypatch.setattr(train_recipe, "run_train", lambda _: None)
    values = {"dataset": "d", "output_dir": "o", "gradient_checkpointing": gradient_checkpointing}
    assert train_recipe.main(settings.settings_from_dict(TrainSettings, values)) == 0
    assert calls == ([] if gradient_checkpointing else [True])
