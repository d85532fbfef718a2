"""Settings by name: from a YAML file or keywords to the dataclasses of `config`, and back.

Knows no setting; it reads the dataclasses' fields. A name is flat (`rank`, not `lora.rank`), as on the command line.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from florence2.errors import UserError

Settings = TypeVar("Settings")


def build(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Make settings from flat names, such as the keys of a YAML file; unknown names are refused by name."""
    known = names(cls)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"`{name}` is not a setting of {cls.__name__}",
                f"did you mean `{near[0]}`?" if near else f"the settings are {', '.join(sorted(known))}",
            )
    return _fill(cls, values)


def names(cls: type) -> list[str]:
    """List the flat names of all settings of a class."""
    flat = []
    for item in dataclasses.fields(cls):
        inner = typing.get_type_hints(cls)[item.name]
        flat += names(inner) if dataclasses.is_dataclass(inner) else [item.name]
    return flat


def _fill(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    hints = typing.get_type_hints(cls)
    given = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        inner = hints[item.name]
        if dataclasses.is_dataclass(inner):
            given[item.name] = _fill(inner, values)
        elif item.name in values:
            value = values[item.name]
            given[item.name] = tuple(value) if isinstance(value, list) else value
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise UserError(f"`{item.name}` is missing", f"pass {item.name}=...")
    return cls(**given)
