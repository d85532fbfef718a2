"""Conversion of the settings of `config` from and to flat names, their types, and parsing of `key=value` words.

A name is flat (`rank`, not `lora.rank`), as on the command line. This module reads the fields of the dataclasses and
names none of them.
"""

import ast
import builtins
import dataclasses
import difflib
import inspect
import json
import math
import os
import typing
from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, TypeVar

from florence2.errors import OptionError

Settings = TypeVar("Settings")
_NOUNS = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}
# What becomes a value of each type, of numpy and pathlib, too.
_CONVERTIBLE: dict[type, tuple[type, ...]] = {str: (os.PathLike, Real), int: (Integral,), float: (Real,), bool: ()}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The lowest and highest value of a number; `includes_low` tells whether it may be the lowest."""

    low: float
    high: float = math.inf
    includes_low: bool = True

    def __contains__(self, number: float) -> bool:
        is_above = number >= self.low if self.includes_low else number > self.low
        return is_above and number <= self.high and math.isfinite(number)

    def __str__(self) -> str:
        if self.includes_low:
            return f"from {self.low} to {self.high}" if self.high < math.inf else f"of at least {self.low}"
        return f"above {self.low}" + (f" and at most {self.high}" if self.high < math.inf else "")


@dataclasses.dataclass(frozen=True)
class SettingType:
    """The type of a setting: texts, numbers, a switch, or one of `choices`.

    Python may pass a `PathLike` for a path, and a mapping for `key=value` words.
    """

    kind: type
    choices: tuple[str, ...] = ()
    is_optional: bool = False
    is_tuple: bool = False
    is_path: bool = False
    is_mapping: bool = False
    bounds: Bounds | None = None

    @classmethod
    def of(cls, hint: Any) -> "SettingType":
        """Read the annotation of a field."""
        parts = typing.get_args(hint)
        match typing.get_origin(hint):
            case typing.Annotated:
                kind, extra = parts
                return dataclasses.replace(
                    cls.of(kind),
                    is_path=extra is os.PathLike,
                    is_mapping=extra is Mapping,
                    bounds=extra if isinstance(extra, Bounds) else None,
                )
            case typing.Literal:
                return cls(str, choices=parts)
            case builtins.tuple:
                return cls(parts[0], is_tuple=True)
        if parts:  # a value, or None
            (part,) = [part for part in parts if part is not type(None)]
            return dataclasses.replace(cls.of(part), is_optional=True)
        return cls(hint)

    @property
    def noun(self) -> str:
        """Return what a value is, for a message."""
        return _NOUNS[self.kind] + (f" {self.bounds}" if self.bounds else "")

    def convert(self, name: str, value: Any) -> Any:
        """Return what Python passes as the value of a setting; raises OptionError for a value of another type."""
        if value is None and self.is_optional:
            return None
        if not self.is_tuple:
            return self._convert_one(name, value)
        if self.is_mapping and isinstance(value, Mapping):
            value = pair_words(value)
        is_one = isinstance(value, str) or not isinstance(value, Sequence)
        return tuple(self._convert_one(name, each) for each in ([value] if is_one else value))

    def _convert_one(self, name: str, value: Any) -> Any:
        if self.choices:
            if value not in self.choices:
                raise OptionError(f"`{name}` is {value!r}", closest_name_hint(str(value), list(self.choices)))
            return value
        if type(value) is not self.kind and isinstance(value, _CONVERTIBLE[self.kind]) and not isinstance(value, bool):
            value = value if isinstance(value, int) and self.kind is float else self.kind(value)
        elif not isinstance(value, self.kind):
            raise OptionError(f"`{name}` is {value!r}", f"pass {self.noun}")
        if self.bounds and value not in self.bounds:
            raise OptionError(f"`{name}` is {value!r}", f"pass {self.noun}")
        return value


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
    names: list[str] = []
    for name, hint in typing.get_type_hints(cls).items():
        names += setting_names(hint) if dataclasses.is_dataclass(hint) else [name]
    return names


def setting_types(cls: Any) -> dict[str, SettingType]:
    """Return the type of every setting of a class by flat name."""
    types: dict[str, SettingType] = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        types |= setting_types(hint) if dataclasses.is_dataclass(hint) else {name: SettingType.of(hint)}
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
        value = pair_words(value)
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
    pairs: dict[str, str] = {}
    for name, value in (word.split("=", 1) for word in words):
        if pairs.setdefault(name, value) != value:
            raise OptionError(f"`{flag}` has two values of `{name}`: `{pairs[name]}` and `{value}`", "pass one of them")
    return pairs


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


def pair_words(pairs: Mapping[str, Any]) -> tuple[str, ...]:
    """Write a mapping as `key=value` words, which `parse_options` reads as the same values."""
    return tuple(f"{key}={_pair_value(value)}" for key, value in pairs.items())


def _pair_value(value: Any) -> str:
    """Write a text as it is, but with quotes where it would be read as a number or a constant."""
    return value if isinstance(value, str) and parse_value(value) == value else json.dumps(value)


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            fields[field.name] = _build(typing.cast(type, hint), values)
        elif field.name in values:
            fields[field.name] = SettingType.of(hint).convert(field.name, values[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise OptionError(f"`{field.name}` is missing", f"pass `{field.name}`")
    return cls(**fields)
