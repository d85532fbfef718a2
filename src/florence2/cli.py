"""The command line: parse, call one recipe, turn a `UserError` into two lines.

Knows the commands' names and nothing of what they do. Torch is imported by the recipe, after the words are understood.
"""

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import tyro

from florence2 import __version__
from florence2 import settings_io as settings
from florence2.config import DataCommandSettings, DemoSettings, EvaluateSettings, PredictSettings, TrainSettings
from florence2.errors import UserError
from florence2.legacy_cli import Rewrite, translate
from florence2.log import log_to_stderr

COMMANDS: dict[str, tuple[type, str]] = {
    "train": (TrainSettings, "florence2.recipes.train:main"),
    "predict": (PredictSettings, "florence2.recipes.predict:main"),
    "demo": (DemoSettings, "florence2.demo.show:main"),
    "evaluate": (EvaluateSettings, "florence2.recipes.evaluate:main"),
    "data": (DataCommandSettings, "florence2.recipes.data:main"),
}

ALIASES = {"--prompt": "--task"}

# The flags that may be left out in front of their values, at the start of a command's words.
BARE = {"data": ("--action", "--dataset", "--output")}


def main(
    arguments: Sequence[str] | None = None, *, published: dict[str, Rewrite] | None = None, prog: str | None = None
) -> int:
    """Run one command and return its exit code: 0 done, 1 done in part, 2 could not start, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in {"-h", "--help"}:
        return _say(_overview())
    if words[0] == "--version":
        return _say(__version__)
    try:
        return _run(words[0], translate(words[1:], published or {}), prog or f"florence2 {words[0]}")
    except UserError as error:
        return _report(error)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
            return _report(UserError(f"{error.strerror}: {error.filename or 'writing failed'}", "free it and go on"))
        raise
    except KeyboardInterrupt:
        return 130


def _run(command: str, words: list[str], prog: str) -> int:
    if command not in COMMANDS:
        raise UserError(f"`{command}` is not a command", settings.closest_name_hint(command, list(COMMANDS)))
    cls, recipe = COMMANDS[command]
    given: Any = tyro.cli(
        cls,
        args=_expanded(_flagged(words, BARE.get(command, ())), cls),
        prog=prog,
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
    )
    _quieten()
    module, function = recipe.split(":")
    run: Callable[[Any], int] = getattr(importlib.import_module(module), function)
    with log_to_stderr():
        return run(given)


def _flagged(words: list[str], flags: Sequence[str]) -> list[str]:
    """Put flags in front of the values that stand bare at the start."""
    bare = list(takewhile(lambda word: not word.startswith("-"), words[: len(flags)]))
    return [each for pair in zip(flags, bare, strict=False) for each in pair] + words[len(bare) :]


def _expanded(words: list[str], cls: type) -> list[str]:
    """Replace aliases, put the words of `--config FILE` in front, and refuse unknown flags by name."""
    known = settings.setting_names(cls)
    from_file: list[str] = []
    rest: list[str] = []
    queue = iter(words)
    for word in queue:
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if not word.startswith("--") or name == "help":
            rest.append(word)
        elif name == "config":
            from_file = _from_file(Path(value if equals else next(queue, "")), cls)
        else:
            name = ALIASES.get(f"--{name}", f"--{name}")[2:]
            if name not in known:
                flags = [f"--{flag}" for flag in known]
                raise UserError(f"`{flag}` is not a flag here", settings.closest_name_hint(f"--{name}", flags))
            rest.append(f"--{name}{equals}{value}")
    return from_file + rest


def _from_file(path: Path, cls: type) -> list[str]:
    """Read settings from a YAML or TOML file as command-line words."""
    import tomllib

    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text) or {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "pass a YAML file to `--config`") from error
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid: {' '.join(str(error).split())}", "mend the file") from error
    known = settings.setting_names(cls)
    words: list[str] = []
    for key, value in values.items():
        name = ALIASES.get(f"--{key}", f"--{key}")[2:].replace("-", "_")
        if name not in known:
            raise UserError(f"`{key}` in {path} is not a setting", settings.closest_name_hint(name, known))
        words += _words(name, value)
    return words


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [] if value is None else [f"--{name}", str(value)]


def _overview() -> str:
    lines = [f"florence2 {__version__}: fine-tune Florence-2 on your pictures, and run it over any number of them", ""]
    lines += [f"  florence2 {name:9} {(cls.__doc__ or '').splitlines()[0]}" for name, (cls, _) in COMMANDS.items()]
    return "\n".join([*lines, "", "`florence2 COMMAND --help` lists the flags of a command"])


def _quieten() -> None:
    """Keep libraries from talking over our own lines, unless the user asked them to."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _report(error: UserError) -> int:
    hint = f"hint: {error.hint}\n" if error.hint else ""
    sys.stderr.write(f"error: {error.what}\n{hint}")
    return 2


def _say(text: str) -> int:
    sys.stdout.write(f"{text}\n")
    return 0
