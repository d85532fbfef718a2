import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from florence2.errors import UserError
from florence2.training.saving.checkpoints import (
    commit_checkpoint,
    is_valid_checkpoint,
    last_checkpoint,
    list_checkpoints,
    remove_staging,
    staging_dir,
)
from florence2.training.saving.resume import resolve_resume


def save(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    save_file({"a": torch.ones(100)}, checkpoint / "adapter_model.safetensors")
    torch.save({"b": torch.ones(100)}, checkpoint / "optimizer.pt")
    torch.save({"c": 1}, checkpoint / "rng_state.pth")
    return checkpoint


def test_last_checkpoint_has_the_most_steps(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth"])
@pytest.mark.parametrize("cut", [0, 0.3, 0.99])
def test_truncated_file_makes_a_checkpoint_invalid(tmp_path: Path, name: str, cut: float) -> None:
    earlier, later = save(tmp_path, 1), save(tmp_path, 2)
    content = (later / name).read_bytes()
    (later / name).write_bytes(content[: int(len(content) * cut)])
    assert not is_valid_checkpoint(later)
    assert resolve_resume("auto", tmp_path) == earlier


def test_flipped_byte_of_the_optimizer_makes_a_checkpoint_invalid(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    data = bytearray((checkpoint / "optimizer.pt").read_bytes())
    data[data.index(b"\x00\x00\x80\x3f" * 8)] ^= 1
    (checkpoint / "optimizer.pt").write_bytes(data)
    assert not is_valid_checkpoint(checkpoint)


def test_missing_weights_make_a_checkpoint_invalid(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    (checkpoint / "adapter_model.safetensors").unlink()
    assert not is_valid_checkpoint(checkpoint)


def test_resume_takes_a_checkpoint_or_a_folder_of_checkpoints(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "run", 3)
    assert resolve_resume(str(checkpoint), tmp_path / "other") == checkpoint
    assert resolve_resume(str(tmp_path / "run"), tmp_path / "other") == checkpoint
    assert resolve_resume("auto", tmp_path / "other") is None
    shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        resolve_resume(str(tmp_path / "run"), tmp_path)


def test_staged_checkpoint_is_ignored(tmp_path: Path) -> None:
    earlier = save(tmp_path, 1)
    save(staging_dir(tmp_path), 2)  # killed before it was moved
    assert last_checkpoint(tmp_path) == earlier
    remove_staging(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_commit_replaces_an_invalid_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    commit_checkpoint(save(staging_dir(tmp_path), 2), tmp_path / "checkpoint-2")
    assert is_valid_checkpoint(tmp_path / "checkpoint-2")


def test_resume_never_raises_for_an_earlier_run(tmp_path: Path) -> None:
    assert resolve_resume("never", tmp_path) is None
    save(tmp_path, 1)
    with pytest.raises(UserError, match="holds a run already"):
        resolve_resume("never", tmp_path)
