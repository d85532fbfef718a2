"""The values of flags, checked before tyro parses them, so that each error is one line and its hint."""

from collections.abc import Sequence

from florence2.errors import OptionError
from florence2.settings_io import SettingType, closest_name_hint, setting_defaults, setting_docs, setting_types

_HELP = {"-h", "--help"}


def normalize_words(words: Sequence[str], settings: type, source: str = "") -> list[str]:
    """Return the words with the values of repeated flags joined; refuse values that are absent, wrong or too many.

    Of a repeated flag that takes one value, the last one counts. `source` is added to a flag in an error.
    """
    if _HELP & set(words):
        return list(words)
    types = setting_types(settings)
    flags = _split_flags(words, types)
    for name, values in flags.items():
        _check_flag(name, values, types[name], settings, source)
    return [word for name, values in flags.items() for word in _flag_words(name, values)]


def check_required(words: Sequence[str], settings: type, prog: str) -> None:
    """Refuse a command that lacks a flag without a default."""
    passed = {word.partition("=")[0] for word in words}
    optional = setting_defaults(settings)
    missing = [name for name in setting_types(settings) if name not in optional and f"--{name}" not in passed]
    if missing and not _HELP & passed:
        flags = " and ".join(f"`--{name}`" for name in missing)
        raise OptionError(f"`{prog}` needs {flags}", _explain(missing[0], settings))


def _split_flags(words: Sequence[str], types: dict[str, SettingType]) -> dict[str, list[str]]:
    """Return the values of each flag, in the order of the words."""
    flags: dict[str, list[str]] = {}
    values: list[str] | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            earlier = flags.pop(name, []) if types[name].is_tuple else []
            values = flags[name] = [*earlier, value] if equals else earlier
        elif values is None:
            raise _unexpected_word(word) or OptionError(f"`{word}` belongs to no flag", "write its flag before it")
        else:
            values.append(word)
    return flags


def _check_flag(name: str, values: list[str], setting: SettingType, settings: type, source: str) -> None:
    flag = f"`--{name}`{source}"
    if setting.kind is bool:
        if values:
            raise _unexpected_word(values[0]) or OptionError(
                f"{flag} takes no value, and `{values[0]}` follows it", f"remove `{values[0]}`"
            )
        return
    if not values and not (source and setting.is_tuple):  # a file may contain an empty list
        raise OptionError(f"{flag} has no value", _explain(name, settings))
    if len(values) > 1 and not setting.is_tuple:
        listed = ", ".join(f"`{value}`" for value in values[:3]) + ", ..." * (len(values) > 3)
        raise _unexpected_word(values[1]) or OptionError(
            f"{flag} takes one value and got {len(values)}: {listed}",
            "pass one, with quotes around a pattern or a value with spaces",
        )
    for value in values:
        _check_value(name, value, setting, settings, source)


def _check_value(name: str, value: str, setting: SettingType, settings: type, source: str) -> None:
    flag = f"`--{name} {value}`{source}"
    if setting.choices and value not in setting.choices:
        raise OptionError(f"{flag} is not one of its values", closest_name_hint(value, list(setting.choices)))
    try:
        number = setting.kind(value)
        is_valid = setting.bounds is None or number in setting.bounds
    except ValueError:
        is_valid = False
    if not is_valid:
        raise OptionError(f"{flag} is not {setting.noun}", f"pass {setting.noun}; {_explain(name, settings)}")


def _unexpected_word(word: str) -> OptionError | None:
    """Word the error of a short flag."""
    if word.startswith("-") and not word[1:2].isdigit():
        return OptionError(f"`{word}` is not a flag of this command", "flags begin with `--`; `--help` lists them")
    return None


def _explain(name: str, settings: type) -> str:
    return f"`--{name}`: {setting_docs(settings)[name]}"


def _flag_words(name: str, values: list[str]) -> list[str]:
    if any(value.startswith("-") for value in values[:1]):
        return [f"--{name}={values[0]}", *values[1:]]
    return [f"--{name}", *values]
