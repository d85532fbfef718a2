"""The README.md of an export: what the folder holds, how to load it, and the model card of its model."""

from pathlib import Path
from typing import Any

import yaml

from florence2.export.export_result import ExportResult
from florence2.export.export_source import ExportSource
from florence2.files import atomic_write
from florence2.model.storage.checkpoint_files import DEMO

_LICENSES = {"microsoft/": "mit", "florence-community/": "mit", DEMO: "apache-2.0"}


def write_card(folder: Path, source: ExportSource, result: ExportResult, usage: str) -> None:
    """Write the card; the card of the model, where it has one, follows it in full."""
    header, body = _split_header(source.card)
    base = source.base
    header |= {"base_model": header.get("base_model", base), "library_name": "transformers"}
    header.setdefault("pipeline_tag", "image-text-to-text")
    if license_name := header.get("license") or _license(str(base)):
        header["license"] = license_name
    tags = [tag for tag in header.get("tags") or [] if tag != "lora"]
    header["tags"] = tags if "florence-2" in tags else ["florence-2", *tags]
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=True, allow_unicode=True).strip(),
        "---",
        "",
        f"# {result.output_path.name}",
        "",
        f"Florence-2, fine-tuned from `{base}`" if source.metadata or source.adapter else f"Florence-2: `{base}`",
        "",
        f"Exported by florence2 from `{source.name}` with `--to {result.target}` in {result.dtype}. Compared with it:"
        f" {result.comparison}.",
        "",
        usage.strip(),
        "",
        *_origin(source),
        body.strip(),
    ]
    with atomic_write(folder / "README.md") as file:
        file.write("\n".join(lines).rstrip() + "\n")


def _split_header(card: str) -> tuple[dict[str, Any], str]:
    """Split a model card into its YAML header and its text."""
    if card.startswith("---\n") and (end := card.find("\n---", 4)) > 0:
        try:
            header = yaml.safe_load(card[4:end])
        except yaml.YAMLError:
            return {}, card
        if isinstance(header, dict):
            return header, card[end + 4 :]
    return {}, card


def _license(base: str) -> str | None:
    return next((name for start, name in _LICENSES.items() if base.startswith(start)), None)


def _origin(source: ExportSource) -> list[str]:
    """Say how the model was trained where it has no card that says it."""
    metadata = source.metadata
    if source.card or not metadata:
        return []
    values = {"base": metadata.base, "task": metadata.task, "prompt": metadata.prompt} | metadata.data
    return ["## Training", "", "| name | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in values.items()), ""]
