"""The record a training leaves beside its weights: what was asked, of which base, with which settings, how it went.

`read_record` is how prediction finds the prompt an adapter was trained with. Knows JSON and no torch.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from florence2 import settings_io as flags
from florence2.config import TrainSettings
from florence2.errors import UserError
from florence2.files import atomic_write
from florence2.model.tasks import find_task

METADATA_FILE = "training_settings.json"
MODEL_CARD_FILE = "README.md"
# Settings that decide what the weights and the optimizer's state are.
COMPATIBILITY_KEYS = ("model_id", "revision", "quantize", "freeze", "rank", "target_modules", "lora_args", "optim")
PACKAGES = ("florence2", "torch", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class RunMetadata:
    """How a fine-tuned model came to be.

    `task` is the task's token or a prompt of the user's own, `prompt` the sentence the model was asked; `settings`
    holds every setting under its flat name; `data` counts what was learnt from; `scores` says how it went.
    """

    base: str
    revision: str | None
    task: str
    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def build_metadata(settings: TrainSettings, base: str, samples: Sequence[Any], held: Sequence[Any]) -> RunMetadata:
    """Say what a training is about to do; `base` is the model's own name."""
    tasks = sorted({sample.task for sample in samples})
    # Rows may name their task themselves; where they all name one, that is what the model will be asked.
    task = find_task(tasks[0] if len(tasks) == 1 else settings.data.task)
    return RunMetadata(
        base=base,
        revision=settings.model.revision,
        task=task.token,
        prompt=task.prompt,
        settings=flags.settings_to_dict(settings),
        data={
            "dataset": " ".join(settings.data.dataset),
            "pictures": "streamed" if settings.data.streaming else len({sample.id for sample in samples}),
            "captions": "streamed" if settings.data.streaming else len(samples),
            "held_out": len(held),
            "tasks": tasks,
        },
        versions=package_versions(),
    )


def read_run_metadata(folder: str | Path) -> RunMetadata | None:
    """Read the record of a training from its output folder or one of its checkpoints; None where there is none."""
    try:
        values = json.loads((Path(folder) / METADATA_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = {item.name for item in fields(RunMetadata)}
    if not isinstance(values, dict) or not {"base", "task", "prompt"} <= values.keys():
        return None
    return RunMetadata(**({"revision": None} | {name: values[name] for name in names & values.keys()}))


def write_run_metadata(folder: Path, record: RunMetadata) -> None:
    """Write the record, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / METADATA_FILE) as file:
        file.write(json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n")


def write_model_card(folder: Path, record: RunMetadata) -> None:
    """Write the model card."""
    with atomic_write(folder / MODEL_CARD_FILE) as file:
        file.write(model_card(record))


def check_resume_compatible(folder: Path, settings: TrainSettings) -> None:
    """Refuse to go on from a checkpoint whose settings give other weights, or weights of other shapes."""
    record = read_run_metadata(folder)
    asked = json.loads(json.dumps(flags.settings_to_dict(settings)))
    for name in COMPATIBILITY_KEYS if record else ():
        before = record.settings.get(name, asked[name]) if record else None
        if before != asked[name]:
            raise UserError(
                f"{folder} was trained with `--{name} {before}`, not `{asked[name]}`",
                "give the same, or another `--output_dir`",
            )


def package_versions() -> dict[str, str]:
    """Name the versions of the packages that matter."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def train_command(settings: TrainSettings, **changed: Any) -> str:
    """Word settings as the command that gives them; what is as by default is left out."""
    values = flags.settings_to_dict(settings)
    plain = flags.settings_to_dict(flags.settings_from_dict(TrainSettings, {"dataset": "", "output_dir": ""}))
    words = ["florence2", "train"]
    for name, value in (values | changed).items():
        if value != plain[name]:
            words += _words(name, value)
    return shlex.join(words)


def model_card(record: RunMetadata) -> str:
    """Word the model card: what it is, how to load it, what it learnt from, how it went."""
    rank = record.settings.get("rank", 0)
    kind = "LoRA adapter" if rank else "fine-tuned model"
    kept = ["---", f"base_model: {record.base}", "library_name: " + ("peft" if rank else "transformers")]
    kept += ["pipeline_tag: image-text-to-text", "tags:", "- florence-2", *(["- lora"] if rank else []), "---", ""]
    lines = [
        f"# {Path(str(record.settings.get('output_dir', 'model'))).name or 'model'}",
        "",
        f"A {kind} for Florence-2, made from `{record.base}`"
        + (f" at revision `{record.revision}`" if record.revision else "")
        + f". It was taught to answer `{record.task}`: *{record.prompt}*",
        "",
        "## Use",
        "",
        "```python",
        "import florence2",
        "",
        'model, processor = florence2.load("path/to/this/folder")',
        "```",
        "",
    ]
    for title, table in (("Data", record.data), ("Scores", record.scores), ("Settings", record.settings)):
        lines += _table(title, table)
    lines += ["Versions: " + ", ".join(f"{name} {number}" for name, number in record.versions.items()), ""]
    return "\n".join(kept + lines)


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return [f"## {title}", "", "| name | value |", "|---|---|", *rows, ""]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
