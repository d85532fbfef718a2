import json
import subprocess
import sys
from pathlib import Path

import pytest

from florence2.model.storage.run_metadata import RunMetadata, read_run_metadata, write_run_metadata

METADATA = RunMetadata("owner/model", "main", "<CAPTION>", "What?", {"rank": 4, "output_dir": "out"}, {"num_images": 3})


def test_written_metadata_is_read_back(tmp_path: Path) -> None:
    write_run_metadata(tmp_path, METADATA)
    assert read_run_metadata(tmp_path) == METADATA
    assert [path.name for path in tmp_path.iterdir()] == ["training_settings.json"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"base": "a"}'])
def test_missing_or_damaged_metadata_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "training_settings.json").write_text(text)
    assert read_run_metadata(tmp_path) is None


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    values = {"base": "b", "task": "t", "prompt": "p", "new": 1}
    (tmp_path / "training_settings.json").write_text(json.dumps(values))
    assert read_run_metadata(tmp_path) == RunMetadata("b", None, "t", "p")


def test_module_imports_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'peft'} & set(sys.modules)"
    code = f"import sys; import florence2.model.storage.run_metadata; assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)
