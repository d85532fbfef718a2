"""Run metadata: the file `training_settings.json` beside trained weights. Imports no torch."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from florence2.files import atomic_write, parse_json, to_json

METADATA_FILE = "training_settings.json"


@dataclass(frozen=True)
class RunMetadata:
    """Base model, prompt, settings, data and scores of a fine-tuned model.

    `task` is a task's token or a custom prompt, `prompt` the text that the model was trained with. `settings` holds
    every setting by its flat name, `data` the sizes of the dataset, `versions` those of the packages. `dtype` names the
    dtype of the computation; None where an earlier version wrote the file.
    """

    base: str
    revision: str | None
    task: str
    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    dtype: str | None = None


def read_run_metadata(folder: str | Path) -> RunMetadata | None:
    """Read the metadata in an output folder or checkpoint; return None if there is none or it is damaged."""
    try:
        values = parse_json((Path(folder) / METADATA_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = {item.name for item in fields(RunMetadata)}
    if not isinstance(values, dict) or not {"base", "task", "prompt"} <= values.keys():
        return None
    return RunMetadata(**({"revision": None} | {name: values[name] for name in names & values.keys()}))


def run_metadata_to_dict(folder: str | Path) -> dict[str, Any]:
    """Return the metadata in a folder as a JSON object; an empty one if there is none."""
    metadata = read_run_metadata(folder)
    return asdict(metadata) if metadata else {}


def write_run_metadata(folder: Path, metadata: RunMetadata) -> None:
    """Write the metadata into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / METADATA_FILE) as file:
        file.write(to_json(asdict(metadata), indent=2) + "\n")
