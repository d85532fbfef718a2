"""Model card of a fine-tuned model: what it is, how to load it, its data, scores and settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence2.files import atomic_write
from florence2.model.storage.run_metadata import RunMetadata

MODEL_CARD_FILE = "README.md"


def write_model_card(folder: Path, metadata: RunMetadata) -> None:
    """Write the model card of a run into a folder."""
    with atomic_write(folder / MODEL_CARD_FILE) as file:
        file.write(model_card(metadata))


def model_card(metadata: RunMetadata) -> str:
    """Render the model card of a run as Markdown with the hub's header."""
    rank = metadata.settings.get("rank", 0)
    kind = "LoRA adapter" if rank else "fine-tuned model"
    header = ["---", f"base_model: {metadata.base}", "library_name: " + ("peft" if rank else "transformers")]
    header += ["pipeline_tag: image-text-to-text", "tags:", "- florence-2", *(["- lora"] if rank else []), "---", ""]
    lines = [
        f"# {Path(str(metadata.settings.get('output_dir', 'model'))).name or 'model'}",
        "",
        f"A {kind} for Florence-2, trained from `{metadata.base}`"
        + (f" at revision `{metadata.revision}`" if metadata.revision else "")
        + f". Its task is `{metadata.task}` with the prompt *{metadata.prompt}*",
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
    for title, table in (("Data", metadata.data), ("Scores", metadata.scores), ("Settings", metadata.settings)):
        lines += _table(title, table)
    lines += ["Versions: " + ", ".join(f"{name} {number}" for name, number in metadata.versions.items()), ""]
    return "\n".join(header + lines)


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
