"""The words of a command: those of its settings, and those of the options that every command has beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from florence2.cli.config_file import ALIASES, CONFIG_HINT, read_config
from florence2.cli.flag_values import normalize_words
from florence2.errors import OptionError
from florence2.settings_io import closest_name_hint, setting_names


@dataclass(frozen=True)
class CommandWords:
    """The words of the settings, those of `--config FILE` first, and the options beside them."""

    words: tuple[str, ...] = ()
    save_config: Path | None = None
    has_json: bool = False
    is_quiet: bool = False


def split_words(words: Sequence[str], settings: type, positional: Sequence[str], *, can_json: bool) -> CommandWords:
    """Name positional values, replace aliases, read `--config`, and refuse unknown flags and wrong values by name.

    `can_json` says that the command has `--json` as an option beside its settings.
    """
    known = setting_names(settings)
    options = ["config", "save_config", "quiet", *(["json"] if can_json else [])]
    from_file: list[str] = []
    rest: list[str] = []
    found = CommandWords()
    queue = iter(_with_positional_flags(words, positional))
    for word in queue:
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if not word.startswith("--") or name == "help":
            rest.append(word)
        elif name in {"config", "save_config"}:
            path = value if equals else next(queue, "")
            if not path:
                raise OptionError(f"`--{name}` has no value", _file_hint(name))
            if name == "config":
                from_file = normalize_words(list(read_config(Path(path), settings)), settings, f" in {path}")
            else:
                found = replace(found, save_config=Path(path).expanduser())
        elif name == "quiet":
            found = replace(found, is_quiet=True)
        elif name == "json" and can_json:
            found = replace(found, has_json=True)
        else:
            name = ALIASES.get(f"--{name}", f"--{name}")[2:]
            if name not in known:
                hint = closest_name_hint(f"--{name}", [f"--{flag}" for flag in [*known, *options]])
                raise OptionError(f"`{flag}` is not a flag of this command", hint)
            rest.append(f"--{name}{equals}{value}")
    return replace(found, words=(*from_file, *normalize_words(rest, settings)))


def common_options(*, can_json: bool) -> str:
    """Describe the options that a command has beside its settings, for its help."""
    lines = [
        "--config FILE: read flags from a YAML or TOML file; the command line wins over it",
        "--save_config FILE: write all flags to a YAML file instead of running the command",
        "--quiet: print warnings and errors only, no progress",
    ]
    if can_json:
        lines.append("--json: print a summary of the run as one JSON object to stdout")
    return "\n".join(lines)


def _file_hint(name: str) -> str:
    return CONFIG_HINT if name == "config" else "pass the YAML file to write"


def _with_positional_flags(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Put the omitted names of flags before the values at the start."""
    values = list(takewhile(lambda word: not word.startswith("-"), words[: len(flags)]))
    return [word for pair in zip(flags, values, strict=False) for word in pair] + list(words[len(values) :])
