import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from florence2 import settings_io as flags
from florence2.config import TrainSettings
from florence2.errors import UserError
from florence2.model.storage.run_metadata import (
    RunMetadata,
    check_resume_compatible,
    model_card,
    read_run_metadata,
    train_command,
    write_run_metadata,
)

RECORD = RunMetadata("owner/model", "main", "<CAPTION>", "What?", {"rank": 4, "output_dir": "out"}, {"pictures": 3})


def test_written_and_read_back(tmp_path: Path) -> None:
    write_run_metadata(tmp_path, RECORD)
    assert read_run_metadata(tmp_path) == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["training_settings.json"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"base": "a"}'])
def test_no_record_is_no_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "training_settings.json").write_text(text)
    assert read_run_metadata(tmp_path) is None


def test_a_record_of_another_version_is_read(tmp_path: Path) -> None:
    kept = {"base": "b", "task": "t", "prompt": "p", "new": 1}
    (tmp_path / "training_settings.json").write_text(json.dumps(kept))
    assert read_run_metadata(tmp_path) == RunMetadata("b", None, "t", "p")


def test_reading_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'peft'} & set(sys.modules)"
    code = f"import sys; import florence2.model.storage.run_metadata; assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_gives_the_settings_back() -> None:
    given = {
        "dataset": "my photos",
        "output_dir": "o",
        "rank": 8,
        "gradient_checkpointing": True,
        "lora_args": ("a=1", "b=2"),
    }
    words = shlex.split(train_command(flags.settings_from_dict(TrainSettings, given), resume="auto"))
    assert words[:2] == ["florence2", "train"]
    assert words[words.index("--dataset") + 1] == "my photos"
    assert words[words.index("--lora_args") + 1 : words.index("--lora_args") + 3] == ["a=1", "b=2"]
    assert "--gradient_checkpointing" in words
    assert words[words.index("--resume") + 1] == "auto"
    assert "--learning_rate" not in words


def test_the_card_says_what_it_is() -> None:
    text = model_card(RECORD)
    assert text.startswith("---\nbase_model: owner/model\n")
    assert "- lora" in text
    assert "| pictures | 3 |" in text
    assert "*What?*" in text


def test_other_shapes_do_not_go_on(tmp_path: Path) -> None:
    settings = flags.settings_from_dict(TrainSettings, {"dataset": "d", "output_dir": "o"})
    write_run_metadata(tmp_path, RunMetadata("b", None, "t", "p", flags.settings_to_dict(settings)))
    check_resume_compatible(tmp_path, settings)
    check_resume_compatible(
        tmp_path, flags.settings_from_dict(TrainSettings, {"dataset": "d", "output_dir": "o", "epochs": 9})
    )
    with pytest.raises(UserError, match="`--optim adamw_torch_fused`, not `sgd`"):
        check_resume_compatible(
            tmp_path, flags.settings_from_dict(TrainSettings, {"dataset": "d", "output_dir": "o", "optim": "sgd"})
        )
