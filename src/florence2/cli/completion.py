"""Shell completion for all commands: the script for a shell, and its installation where the shell finds it.

The script is static, made by shtab from the settings of the commands: to complete a word, no Python starts.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import shtab

from florence2.errors import OptionError
from florence2.files import atomic_write
from florence2.model.tasks import TASKS
from florence2.settings_io import setting_docs, setting_types

PROG = "florence2"
SHELLS = ("bash", "zsh", "fish")
PRINT, INSTALL = "--print-completion", "--install-completion"
OPTIONS = {
    "--version": "print the version",
    PRINT: "print the completion script of a shell",
    INSTALL: "install completion for this shell",
}
_MARK = "# florence2 completion"


class CompletedCommand(Protocol):
    """What completion reads of a command."""

    @property
    def settings(self) -> type:
        """Return the class of its settings."""
        ...

    @property
    def positional(self) -> tuple[str, ...]:
        """Return the flags whose names may be omitted."""
        ...

    @property
    def can_json(self) -> bool:
        """Return whether it has `--json` beside its settings."""
        ...

    @property
    def summary(self) -> str:
        """Return the first line of its help."""
        ...


def completion_script(shell: str, commands: Mapping[str, CompletedCommand]) -> str:
    """Return the script that completes all commands, their flags, choices and files in a shell."""
    return shtab.complete(_parser(commands), shell=shell) + "\n"


def install_completion(shell: str, commands: Mapping[str, CompletedCommand]) -> list[str]:
    """Write the script where the shell finds it, and return a line for each file; a second call changes nothing."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    zdotdir = Path(os.environ.get("ZDOTDIR") or home)
    script = completion_script(shell, commands)
    if shell == "fish":
        return [_write(config / "fish" / "completions" / f"{PROG}.fish", script)]
    if shell == "zsh":
        path = zdotdir / ".zfunc" / f"_{PROG}"
        setup = f'fpath=("{path.parent}" $fpath); autoload -Uz compinit; compinit'
        return [_write(path, script), _append(zdotdir / ".zshrc", setup)]
    path = data / "bash-completion" / "completions" / PROG  # bash-completion would find it without the line below
    return [_write(path, script), _append(home / ".bashrc", f'[ -f "{path}" ] && . "{path}"')]


def check_shell(name: str | None) -> str:
    """Return the shell that the user names, else the login shell; raise OptionError for another one."""
    shell = name or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        what = f"there is no completion for `{shell}`" if shell else "the variable SHELL names no shell"
        raise OptionError(what, f"pass one of {', '.join(SHELLS)}")
    return shell


def _write(path: Path, text: str) -> str:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return f"unchanged: {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text)
    return f"wrote {path}"


def _append(path: Path, line: str) -> str:
    """Append a line to a startup file, which may be a link to a file elsewhere; other lines stay as they are."""
    row = f"{line}  {_MARK}"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if row in text.splitlines():
        return f"unchanged: {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{'' if not text or text.endswith(chr(10)) else chr(10)}{row}\n")
    return f"added a line to {path}; open a new shell"


def _parser(commands: Mapping[str, CompletedCommand]) -> argparse.ArgumentParser:
    """Describe all commands to shtab, as a parser that parses nothing."""
    parser = argparse.ArgumentParser(PROG)
    parser.add_argument("--version", action="store_true", help=OPTIONS["--version"])
    parser.add_argument(PRINT, choices=SHELLS, help=OPTIONS[PRINT])
    parser.add_argument(INSTALL, choices=SHELLS, nargs="?", help=OPTIONS[INSTALL])
    verbs = parser.add_subparsers()
    groups: dict[str, Any] = {}
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in commands.items():
        group, _, action = name.partition(" ")
        if action.startswith("--"):  # a flag of the command `group` that makes it another command
            _add_flags(parsers[group], command)
            continue
        if action and group not in groups:
            groups[group] = verbs.add_parser(group, help=f"commands of {group}").add_subparsers()
        siblings = groups[group] if action else verbs
        parsers[name] = siblings.add_parser(
            action or group, help=_one_line(command.summary), conflict_handler="resolve"
        )
        _add_flags(parsers[name], command)
    return parser


def _add_flags(parser: argparse.ArgumentParser, command: CompletedCommand) -> None:
    files: Any = [parser.add_argument("--config", help="read flags from a YAML or TOML file")]
    files.append(parser.add_argument("--save_config", help="write all flags to a YAML file"))
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    if command.can_json:
        parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    for flag in command.positional:
        files.append(parser.add_argument(flag[2:] + "_value", nargs="?", help=flag))
    docs = setting_docs(command.settings)
    for name, setting in setting_types(command.settings).items():
        text = _one_line(docs.get(name, ""))
        if setting.kind is bool:
            parser.add_argument(f"--{name}", action="store_true", help=text)
            continue
        many: dict[str, Any] = {"nargs": "*"} if setting.is_tuple else {}
        choices = [task.name for task in TASKS] if name == "task" else setting.choices or None
        argument = parser.add_argument(f"--{name}", choices=choices, help=text, **many)
        if setting.is_path:
            files.append(argument)
    for argument in files:
        argument.complete = shtab.FILE


def _one_line(text: str) -> str:
    """Return the first sentence of a help text without what a shell or argparse would interpret."""
    flat = re.sub(r" \(default.*?\)", "", " ".join(text.split()))
    sentence = re.split(r"[.;:] ", flat, maxsplit=1)[0].rstrip(".")
    sentence = re.sub(r" \([^)]*$", "", sentence)  # a parenthesis that goes on in the next sentence
    return re.sub(r"[`'\"%$\\\[\]]", "", sentence)
