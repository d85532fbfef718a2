"""Upload by `push_to_hub`, up to the client of the hub, which is replaced."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers.trainer

from florence2.errors import UserError
from florence2.recipes import train as train_recipe
from tests.training.images import run, save_calm, save_photos


def test_push_to_hub_uploads_the_result_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_calls: list[dict[str, Any]] = []
    uploads: list[dict[str, Any]] = []

    def create_repo(name: str, **kwargs: Any) -> SimpleNamespace:
        create_calls.append({"name": name} | kwargs)
        return SimpleNamespace(repo_id=name)

    def upload(folder_path: Path, **kwargs: Any) -> None:
        uploads.append(kwargs | {"files": {p.name for p in folder_path.iterdir()}})
        assert "| loss |" in (folder_path / "README.md").read_text()

    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: SimpleNamespace(create_repo=create_repo))
    monkeypatch.setattr(train_recipe, "upload_folder", upload)
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    hub = ["push_to_hub=true", "hub_model_id=me/photos", "hub_private_repo=true", "hub_revision=v1"]
    run(tmp_path, "out", trainer_args=hub)
    assert [(a["name"], a["private"]) for a in create_calls] == [("me/photos", True)]
    (upload_call,) = uploads
    assert (upload_call["repo_id"], upload_call["revision"]) == ("me/photos", "v1")
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= upload_call["files"]
    assert "checkpoint-*" in upload_call["ignore_patterns"]


def test_hub_token_is_refused_as_a_setting(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    with pytest.raises(UserError, match="a token must not be saved with the settings"):
        run(tmp_path, "out", trainer_args=["push_to_hub=true", "hub_token=hidden"])
