"""The command line: parse the words, run one recipe, print a `UserError` as two lines.

Torch is imported by the recipe, after the words are parsed.
"""

import errno
import importlib
import io
import logging
import os
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import tyro

from florence2 import __version__, config
from florence2.cli.command_words import common_options, split_words
from florence2.cli.config_file import write_config
from florence2.cli.flag_values import check_required
from florence2.cli.legacy_cli import Rewrite, translate
from florence2.errors import OptionError, UserError
from florence2.files import DEVICE_ERRORS
from florence2.log import log_to_stderr, logger
from florence2.settings_io import closest_name_hint
from florence2.system import exit_process, switch_off_telemetry


@dataclass(frozen=True)
class Command:
    """A command: the class of its settings, the recipe that runs it, and flags whose names may be omitted.

    `can_json` says that its recipe takes `as_json`, to print a summary of the run.
    """

    settings: type
    recipe: str
    positional: tuple[str, ...] = ()
    can_json: bool = False

    @property
    def summary(self) -> str:
        """Return the first line of the help."""
        return (self.settings.__doc__ or "").splitlines()[0]

    def run(self, settings: Any, *, as_json: bool = False) -> int:
        """Import the recipe and run it."""
        module, function = self.recipe.split(":")
        main: Callable[..., int] = getattr(importlib.import_module(module), function)
        return main(settings, as_json=True) if as_json else main(settings)


COMMANDS = {
    "train": Command(config.TrainSettings, "florence2.recipes.train:main", can_json=True),
    "predict": Command(config.PredictSettings, "florence2.recipes.predict:main", can_json=True),
    "predict --status": Command(config.StatusSettings, "florence2.recipes.shards.predict_status:main", ("--status",)),
    "export": Command(config.ExportSettings, "florence2.recipes.export:main", can_json=True),
    "serve": Command(config.ServeSettings, "florence2.apps.serve.run_server:main"),
    "review": Command(config.ReviewSettings, "florence2.apps.page.run_review:main", ("--dataset",)),
    "demo": Command(config.DemoSettings, "florence2.demo.show:main"),
    "evaluate": Command(config.EvaluateSettings, "florence2.recipes.evaluate:main", can_json=True),
    "data check": Command(config.CheckSettings, "florence2.recipes.data:main_check", ("--dataset",)),
    "data preview": Command(config.PreviewSettings, "florence2.recipes.data:main_preview", ("--dataset", "--output")),
    "data convert": Command(config.ConvertSettings, "florence2.recipes.data:main_convert", ("--dataset", "--output")),
    "mcp": Command(config.McpSettings, "florence2.apps.mcp.run_mcp:main"),
    "doctor": Command(config.DoctorSettings, "florence2.apps.doctor.doctor:main", ("--path",)),
}


_NO_MEMORY_MESSAGES = (  # of the loader of libraries, of Python, and of C++
    "failed to map segment",
    "Cannot allocate memory",
    "can't start new thread",
    "Resource temporarily unavailable",
)


def main(
    arguments: Sequence[str] | None = None, *, published: dict[str, Rewrite] | None = None, prog: str | None = None
) -> int:
    """Run one command and return its exit code: 0 done, 1 done in part, 2 could not start, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        return _print(__version__)
    if not words or words[0] in {"-h", "--help"}:
        return _print(_overview(COMMANDS))
    try:
        if words[0].partition("=")[0].replace("_", "-") in {"--print-completion", "--install-completion"}:
            return _complete(words)
        name, flags = _split_command(words)
        if name not in COMMANDS:  # a group, such as `data --help`
            return _print(_overview(_group(name)))
        code = _run(name, translate(flags, published or {}), prog or f"florence2 {name}")
        sys.stdout.flush()  # so that data that cannot be written is an error of this command
        return code
    except UserError as error:
        return _print_error(error)
    except OSError as error:
        if (hint := _file_hint(error)) is None:
            raise
        where = "writing failed" if error.filename is None else error.filename or "``"
        return _print_error(UserError(f"{error.strerror}: {where}", hint))
    except (MemoryError, RuntimeError, ImportError) as error:
        if not _has_no_memory(error):
            raise
        what = f"the system gives this process no more memory or threads: {str(error) or 'out of memory'}"
        return _print_error(UserError(what, "end other programs, or raise the limits that `ulimit -a` prints"))
    except KeyboardInterrupt:
        return 130


def _has_no_memory(error: Exception) -> bool:
    """Return whether the system refused memory, or a thread, to whatever part of the command."""
    devices: Any = sys.modules.get("florence2.devices")
    if isinstance(error, MemoryError) or (devices is not None and devices.is_out_of_memory(error)):
        return True
    return any(words in str(error) for words in _NO_MEMORY_MESSAGES)


def _file_hint(error: OSError) -> str | None:
    """Return how to fix an error of a file or of the disk; None for any other error."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
        return "free space or change permissions, then run the command again"
    if error.errno in DEVICE_ERRORS:
        return "check the disk, or the connection to its server, then run the command again"
    if error.errno == errno.ENAMETOOLONG:
        return "pass a shorter path"
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return "pass a path in a folder; a part of this one is a file"
    is_of_path = error.errno in {errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.EPERM}
    return "pass another path, or correct this one" if is_of_path and error.filename is not None else None


def run_program(
    arguments: Sequence[str] | None = None, *, published: dict[str, Rewrite] | None = None, prog: str | None = None
) -> NoReturn:
    """Run one command as the main program of this process, and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a console may lack the characters of a file name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(arguments, published=published, prog=prog)
    except SystemExit as error:  # of the parser, after the help or a wrong value
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BrokenPipeError:
        if not _is_reader_gone():
            raise
        code = 1
    exit_process(code)


def _is_reader_gone() -> bool:
    """Return whether the program that reads stdout or stderr has ended, as `head` does after its lines."""
    if sys.platform == "win32":
        return True
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)  # of no events but errors
    return bool(poll.poll(0))


def _split_command(words: list[str]) -> tuple[str, list[str]]:
    """Split the name of a command, of one word or two, from its flags; a group is named only to print its help."""
    name = words[0]
    for command, flag in (each.split(" ") for each in COMMANDS if " --" in each):  # a flag that makes another command
        if name == command and any(word.partition("=")[0] == flag for word in words[1:]):
            return f"{command} {flag}", [word.removeprefix(f"{flag}=") for word in words[1:] if word != flag]
    if name in COMMANDS:
        return name, words[1:]
    actions = [command.removeprefix(f"{name} ") for command in _group(name)]
    if not actions:
        raise OptionError(
            f"`{name}` is not a command", closest_name_hint(name, sorted({n.split()[0] for n in COMMANDS}))
        )
    action = words[1] if len(words) > 1 else "--help"
    if action in {"-h", "--help"}:
        return name, []
    if action not in actions:
        raise OptionError(f"`{name} {action}` is not a command", closest_name_hint(action, actions))
    return f"{name} {action}", words[2:]


def _group(name: str) -> dict[str, Command]:
    return {command: value for command, value in COMMANDS.items() if command.startswith(f"{name} ")}


def _run(name: str, words: list[str], prog: str) -> int:
    command = COMMANDS[name]
    parsed = split_words(words, command.settings, command.positional, can_json=command.can_json)
    check_required(parsed.words, command.settings, prog)
    if word := next((each for each in parsed.words if "\0" in each), None):  # from a `--config` file
        raise OptionError(f"`{word}` has a null character", "remove it")
    settings: Any = tyro.cli(
        command.settings,
        args=parsed.words,
        prog=prog,
        description=f"{command.summary}\n{common_options(can_json=command.can_json)}",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
    )
    _silence_libraries()
    with log_to_stderr(logging.WARNING if parsed.is_quiet else logging.INFO):
        if parsed.save_config is not None:
            write_config(parsed.save_config, settings, name)
            line = f"{prog} --config {shlex.quote(str(parsed.save_config))}{' --json' * parsed.has_json}"
            logger.info(f"wrote {parsed.save_config}; run it by `{line}`")
            return 0
        return command.run(settings, as_json=parsed.has_json)


def _overview(commands: dict[str, Command]) -> str:
    lines = [f"florence2 {__version__}: fine-tune Florence-2 on your images, and run it on any number of them", ""]
    lines += [f"  florence2 {name:12} {command.summary}" for name, command in commands.items()]
    ending = "`florence2 COMMAND --help` lists the flags of a command; `florence2 --install-completion` completes words"
    return "\n".join([*lines, "", f"{ending} in bash, zsh and fish"])


def _complete(words: list[str]) -> int:
    """Print or install the completion of a shell: `--print-completion SHELL`, `--install-completion [SHELL]`."""
    from florence2.cli.completion import check_shell, completion_script, install_completion

    flag, _, value = words[0].partition("=")
    names = [value, *words[1:]] if value else words[1:]
    if len(names) > 1:
        raise OptionError(f"`{flag}` takes one shell", "pass bash, zsh or fish")
    shell = check_shell(names[0] if names else None)
    if "print" in flag:
        sys.stdout.write(completion_script(shell, COMMANDS))
        return 0
    return _print("\n".join(install_completion(shell, COMMANDS)))


def _silence_libraries() -> None:
    """Switch off the messages and the telemetry of libraries, unless the environment asks for them."""
    switch_off_telemetry()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _print_error(error: UserError) -> int:
    hint = f"hint: {error.hint}\n" if error.hint else ""
    sys.stderr.write(f"error: {error.what}\n{hint}")
    return 2


def _print(text: str) -> int:
    sys.stdout.write(f"{text}\n")
    return 0
