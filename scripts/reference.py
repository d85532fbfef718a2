"""Write the flags of all commands as tables to docs/reference/, from config.py; a test checks that they are fresh.

uv run python scripts/reference.py
"""

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from florence2.cli.program import COMMANDS, Command
from florence2.settings_io import SettingType, setting_docs

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PAGES = sorted({name.split()[0] for name in COMMANDS})
_TYPES = {str: "text", int: "integer", float: "number", bool: "switch"}
_COMMON = """Beside these, every command takes `--config FILE`, which reads flags from a YAML or TOML file (the
command line wins over it), `--save_config FILE`, which writes all flags to a YAML file instead of running it, and
`--quiet`, which prints warnings and errors only, without progress."""


def page(name: str) -> str:
    """Return the page of a command or of a group of commands, such as `data`."""
    return "\n".join(_section(key, command) for key, command in COMMANDS.items() if key.split()[0] == name)


def _section(name: str, command: Command) -> str:
    """Write a command with a table for each group of its flags."""
    lines = [f"# `florence2 {name}`", "", command.summary, ""]
    if command.positional:
        names = " ".join(flag[2:].upper() for flag in command.positional)
        lines += [f"`florence2 {name} {names}` names these flags by their order.", ""]
    for title, settings in _groups(command.settings):
        if title:
            lines += [f"## {title}", "", (settings.__doc__ or "").splitlines()[0], ""]
        lines += ["| flag | value | default | |", "|---|---|---|---|", *_rows(settings), ""]
    lines += [_COMMON + (" `--json` prints a summary as JSON." if command.can_json else ""), ""]
    return "\n".join(lines)


def _groups(settings: type) -> Iterator[tuple[str, type]]:
    """Yield the title and the class of each group of flags, and last the class itself where it has flags of its own."""
    hints = typing.get_type_hints(settings)
    groups = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    for name, group in groups.items():
        yield name.replace("_", " ").capitalize(), typing.cast(type, group)
    if len(groups) < len(hints):
        yield "Command" if groups else "", settings


def _rows(settings: type) -> Iterator[str]:
    """Write the flags of a class itself, without those of its groups."""
    hints, docs = typing.get_type_hints(settings, include_extras=True), setting_docs(settings)
    for field in dataclasses.fields(settings):
        if not dataclasses.is_dataclass(hints[field.name]):
            text = re.sub(r" \(default: None\)", "", " ".join(docs.get(field.name, "").split()))
            cells = (f"`--{field.name}`", _value(SettingType.of(hints[field.name])), _default(field), text)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(setting: SettingType) -> str:
    """Describe the values of a type."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    return "texts" if setting.is_tuple else _TYPES[setting.kind] + (f" {setting.bounds}" if setting.bounds else "")


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None or field.default in ((), ""):
        return ""
    value = field.default
    return "off" if value is False else f"`{' '.join(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PAGES:
        (FOLDER / f"{name}.md").write_text(page(name), encoding="utf-8")
