"""Files of settings: `--config FILE` reads one as words of the command line, `--save_config FILE` writes one."""

import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from florence2.errors import OptionError
from florence2.files import atomic_write
from florence2.settings_io import closest_name_hint, setting_names, setting_words, settings_to_dict

ALIASES = {"--prompt": "--task"}
CONFIG_HINT = "pass a YAML or TOML file to `--config`"


def read_config(path: Path, settings: type) -> Iterator[str]:
    """Read settings from a YAML or TOML file as words of the command line; unknown names are refused."""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text) or {}
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}", CONFIG_HINT) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not valid: {' '.join(str(error).split())}", "fix the file") from error
    if not isinstance(values, dict):
        raise OptionError(f"{path} contains no `flag: value` lines", CONFIG_HINT)
    known = setting_names(settings)
    for key, value in values.items():
        name = ALIASES.get(f"--{key}", f"--{key}")[2:].replace("-", "_")
        if name not in known:
            raise OptionError(f"`{key}` in {path} is not a setting", closest_name_hint(name, known))
        yield from setting_words(name, value)


def write_config(path: Path, settings: Any, command: str) -> None:
    """Write all settings of a command as YAML that `read_config` reads as the same settings."""
    if path.suffix == ".toml":
        raise OptionError(f"`--save_config {path}` would write YAML", "pass a name that ends with .yaml")
    values = {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings_to_dict(settings).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(f"# florence2 {command} --config {shlex.quote(str(path))}\n")
        yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True)
