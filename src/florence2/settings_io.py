"""Settings by name: from keywords or a YAML file to the dataclasses of `config`, and back.

Knows no setting; it reads the dataclasses' fields. A name is flat (`rank`, not `lora.rank`), as on the command line.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from florence2.errors import UserError

Settings = TypeVar("Settings")


def settings_from_dict(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Make settings from flat names; unknown and missing names are refused by name."""
    known = setting_names(cls)
    for name in values:
        if name not in known:
            raise UserError(f"`{name}` is not a setting of {cls.__name__}", closest_name_hint(name, known))
    return typing.cast(Settings, _fill(cls, values))


def settings_to_dict(settings: Any) -> dict[str, Any]:
    """List all settings under their flat names: the inverse of `build`."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        values |= settings_to_dict(value) if dataclasses.is_dataclass(value) else {item.name: value}
    return values


def setting_names(cls: Any) -> list[str]:
    """List the flat names of all settings of a class."""
    found: list[str] = []
    for name, hint in typing.get_type_hints(cls).items():
        found += setting_names(hint) if dataclasses.is_dataclass(hint) else [name]
    return found


def closest_name_hint(name: str, known: list[str]) -> str:
    """Word a hint that names the closest of the known names, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"there are {', '.join(sorted(known))}"


def parse_pairs(flag: str, given: tuple[str, ...]) -> dict[str, str]:
    """Read the `key=value` words of a flag."""
    for word in given:
        if "=" not in word:
            raise UserError(f"`{flag} {word}` is not of the form key=value", f"write `{flag} {word}=...`")
    return dict(word.split("=", 1) for word in given)


def parse_options(flag: str, given: tuple[str, ...], known: list[str]) -> dict[str, Any]:
    """Read the `key=value` words of a flag as Python values; unknown keys are refused by name."""
    for name in (words := parse_pairs(flag, given)):
        if name not in known:
            raise UserError(f"`{flag}` has no `{name}`", closest_name_hint(name, known))
    return {name: parse_value(word) for name, word in words.items()}


def parse_value(word: str) -> Any:
    """Read a number, true, false, none, a list or a table in JSON; anything else is text."""
    if word.lower() in (plain := {"true": True, "false": False, "none": None, "null": None}):
        return plain[word.lower()]
    for read in (int, float, json.loads):
        try:
            return read(word)
        except ValueError:
            continue
    return word


def _several(value: Any) -> Any:
    """Take one word where there may be several."""
    return (value,) if isinstance(value, str) else tuple(value)


def _fill(cls: type, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            given[item.name] = _fill(typing.cast(type, hint), values)
        elif item.name in values:
            given[item.name] = _several(values[item.name]) if typing.get_origin(hint) is tuple else values[item.name]
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise UserError(f"`{item.name}` is missing", f"pass `{item.name}`")
    return cls(**given)
