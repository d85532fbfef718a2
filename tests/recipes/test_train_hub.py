"""What `push_to_hub` sends, up to the hub's own client: there is no hub here."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers.trainer

from florence2.errors import UserError
from florence2.recipes import train as recipe
from tests.training.images import run, save_calm, save_photos


def test_the_whole_result_is_sent_once_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    def create_repo(name: str, **given: Any) -> SimpleNamespace:
        asked.append({"name": name} | given)
        return SimpleNamespace(repo_id=name)

    def upload(folder_path: Path, **given: Any) -> None:
        sent.append(given | {"files": {p.name for p in folder_path.iterdir()}})
        assert "| loss |" in (folder_path / "README.md").read_text()

    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: SimpleNamespace(create_repo=create_repo))
    monkeypatch.setattr(recipe, "upload_folder", upload)
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    hub = ["push_to_hub=true", "hub_model_id=me/photos", "hub_private_repo=true", "hub_revision=v1"]
    run(tmp_path, "out", trainer_args=hub)
    assert [(a["name"], a["private"]) for a in asked] == [("me/photos", True)]
    (one,) = sent
    assert (one["repo_id"], one["revision"]) == ("me/photos", "v1")
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= one["files"]
    assert "checkpoint-*" in one["ignore_patterns"]


def test_a_token_is_no_setting(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    save_calm(tmp_path / "model")
    with pytest.raises(UserError, match="a token must not be saved with the settings"):
        run(tmp_path, "out", trainer_args=["push_to_hub=true", "hub_token=hidden"])
