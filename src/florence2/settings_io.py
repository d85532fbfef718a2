"""Conversion of the settings of `config` from and to flat names, and parsing of `key=value` words.

A name is flat (`rank`, not `lora.rank`), as on the command line. This module reads the fields of the dataclasses and
names none of them.
"""

import ast
import dataclasses
import difflib
import inspect
import json
import typing
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from florence2.errors import OptionError

Settings = TypeVar("Settings")


def settings_from_dict(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Build settings from flat names; unknown and missing names are refused by name."""
    known = setting_names(cls)
    for name in values:
        if name not in known:
            raise OptionError(f"`{name}` is not a setting of {cls.__name__}", closest_name_hint(name, known))
    return typing.cast(Settings, _build(cls, values))


def settings_to_dict(settings: Any) -> dict[str, Any]:
    """Return all settings by flat name: the inverse of `settings_from_dict`."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        values |= settings_to_dict(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return values


def setting_names(cls: Any) -> list[str]:
    """List the flat names of all settings of a class."""
    return list(setting_types(cls))


def setting_types(cls: Any) -> dict[str, Any]:
    """Return the type of every setting of a class by flat name."""
    types: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
        types |= setting_types(hint) if dataclasses.is_dataclass(hint) else {name: hint}
    return types


def setting_defaults(cls: Any) -> dict[str, Any]:
    """Return the default of every setting of a class that has one, by flat name."""
    defaults: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            defaults |= setting_defaults(hints[field.name])
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
    return defaults


def setting_docs(cls: Any) -> dict[str, str]:
    """Return the help text of every setting of a class by flat name: the docstring under its field."""
    docs: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, cls.__bases__):
        docs |= setting_docs(base)
    for name, hint in typing.get_type_hints(cls).items():
        docs |= setting_docs(hint) if dataclasses.is_dataclass(hint) else {}
        docs.setdefault(name, "")
    body = ast.parse(inspect.getsource(cls)).body[0]
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, doc in pairwise(statements):
        match field, doc:
            case ast.AnnAssign(target=ast.Name(id=str(name))), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return {name: docs[name] for name in setting_names(cls)}


def setting_words(name: str, value: Any) -> list[str]:
    """Write a setting as words of the command line; a flag that is off and None have no words."""
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    if isinstance(value, Mapping):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    # A text such as `-` or `--style` would be read as a flag of its own.
    return [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]


def closest_name_hint(name: str, known: list[str]) -> str:
    """Word a hint that names the closest of the known names, or lists all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"choose from {', '.join(sorted(known))}"


def parse_pairs(flag: str, words: Sequence[str]) -> dict[str, str]:
    """Split the `key=value` words of a flag."""
    for word in words:
        if "=" not in word:
            raise OptionError(f"`{flag} {word}` is not of the form key=value", f"pass `{flag} {word}=...`")
    return dict(word.split("=", 1) for word in words)


def parse_options(flag: str, words: Sequence[str], known: list[str]) -> dict[str, Any]:
    """Parse the `key=value` words of a flag into Python values; unknown keys are refused by name."""
    for name in (pairs := parse_pairs(flag, words)):
        if name not in known:
            raise OptionError(f"`{flag}` has no `{name}`", closest_name_hint(name, known))
    return {name: parse_value(word) for name, word in pairs.items()}


def parse_value(word: str) -> Any:
    """Parse a number, true, false, none, or a list or table in JSON; anything else is text."""
    if word.lower() in (constants := {"true": True, "false": False, "none": None, "null": None}):
        return constants[word.lower()]
    for parse in (int, float, json.loads):
        try:
            return parse(word)
        except ValueError:
            continue
    return word


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            fields[field.name] = _build(typing.cast(type, hint), values)
        elif field.name in values:
            value = values[field.name]
            fields[field.name] = _as_tuple(value) if typing.get_origin(hint) is tuple else value
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise OptionError(f"`{field.name}` is missing", f"pass `{field.name}`")
    return cls(**fields)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """Return a sequence as a tuple; one word is a tuple of one."""
    return (value,) if isinstance(value, str) else tuple(value)
