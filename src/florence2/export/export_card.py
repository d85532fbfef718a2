"""The README.md of an export: what the folder holds, how to load it, and the model card of its model."""

from pathlib import Path
from typing import Any

import yaml

from florence2.export.export_result import ExportResult
from florence2.export.export_source import ExportSource, short_name
from florence2.files import atomic_write
from florence2.model.storage.checkpoint_files import DEMO

_LIBRARIES = {"onnx": "transformers.js", "openvino": "openvino"}
_LICENSES = {"microsoft/": "mit", "florence-community/": "mit", DEMO: "apache-2.0"}


def write_card(folder: Path, source: ExportSource, result: ExportResult, usage: str) -> None:
    """Write the card; the card of the model, where it has one, follows it in full."""
    header, body = _split_header(source.card)
    origin = "Florence-2, fine-tuned from" if source.metadata or source.adapter else "Florence-2:"
    lines = [
        "---",
        yaml.safe_dump(_header(header, source, result), sort_keys=True, allow_unicode=True).strip(),
        "---",
        "",
        f"# {result.output_path.name}",
        "",
        f"{origin} `{short_name(source.base)}`",
        "",
        f"Exported by florence2 from `{short_name(source.name)}` with `--to {result.target}` in {result.dtype}."
        f" Compared with it: {result.comparison}.",
        "",
        usage.strip(),
        "",
        *_origin(source),
        body.strip(),
    ]
    with atomic_write(folder / "README.md") as file:
        file.write("\n".join(lines).rstrip() + "\n")


def _header(header: dict[str, Any], source: ExportSource, result: ExportResult) -> dict[str, Any]:
    """Complete the header of a model card; a base that is a local folder is no model of the hub."""
    is_adapter = result.target.startswith("adapter")
    tags = [tag for tag in header.get("tags") or [] if tag not in ("lora", "florence-2")]
    header = {"pipeline_tag": "image-text-to-text"} | header
    header |= {"library_name": "peft" if is_adapter else _LIBRARIES.get(result.target, "transformers")}
    header |= {"tags": ["florence-2", *(["lora"] if is_adapter else []), *tags]}
    base = header.pop("base_model", source.base)
    if base != DEMO and not (isinstance(base, str) and Path(base).is_absolute()):
        header["base_model"] = base
    license_name = header.pop("license", None) or _license(source.base)
    return header | ({"license": license_name} if license_name else {})


def _split_header(card: str) -> tuple[dict[str, Any], str]:
    """Split a model card into its YAML header and its text."""
    if card.startswith("---\n") and (end := card.find("\n---", 4)) > 0:
        try:
            header = yaml.safe_load(card[4:end])
        except (yaml.YAMLError, ValueError, RecursionError):
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
    values = {"base": short_name(metadata.base), "task": metadata.task, "prompt": metadata.prompt} | metadata.data
    return ["## Training", "", "| name | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in values.items()), ""]
