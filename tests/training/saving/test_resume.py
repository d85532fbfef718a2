import shlex
from pathlib import Path
from typing import Any

import pytest

from florence2.config import TrainSettings
from florence2.errors import UserError
from florence2.model.storage.run_metadata import RunMetadata, write_run_metadata
from florence2.settings_io import settings_from_dict, settings_to_dict
from florence2.training.saving.resume import check_resume_compatible, train_command


def settings(**values: Any) -> dict[str, Any]:
    return settings_to_dict(settings_from_dict(TrainSettings, {"dataset": "d", "output_dir": "o"} | values))


def test_train_command_has_only_changed_settings() -> None:
    changed = {
        "dataset": "my photos",
        "rank": 8,
        "gradient_checkpointing": True,
        "lora_args": ("a=1", "b=2"),
    }
    words = shlex.split(train_command({**settings(**changed), "resume": "auto"}, settings()))
    assert words[:2] == ["florence2", "train"]
    assert words[words.index("--dataset") + 1] == "my photos"
    assert words[words.index("--lora_args") + 1 : words.index("--lora_args") + 3] == ["a=1", "b=2"]
    assert "--gradient_checkpointing" in words
    assert words[words.index("--resume") + 1] == "auto"
    assert "--learning_rate" not in words


def test_other_optimizer_does_not_resume(tmp_path: Path) -> None:
    write_run_metadata(tmp_path, RunMetadata("b", None, "t", "p", settings()))
    check_resume_compatible(tmp_path, settings())
    check_resume_compatible(tmp_path, settings(epochs=9))
    with pytest.raises(UserError, match="`--optim adamw_torch_fused`, not `sgd`"):
        check_resume_compatible(tmp_path, settings(optim="sgd"))
