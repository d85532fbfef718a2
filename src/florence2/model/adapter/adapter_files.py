"""The files of an adapter and the name of its base, read without peft, whose import takes seconds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2.errors import CheckpointError, UserError
from florence2.model.geometry import is_finite_number
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import legacy_layout as legacy

_BASE_HINT = (
    "pass `--base_model` with a folder of this machine or a hub id (to train, set `base_model_name_or_path` in its"
    f" `{checkpoint.ADAPTER_CONFIG}`); in Python, pass `base` to `florence2.load`"
)


@dataclass(frozen=True)
class Adapter:
    """A LoRA as read from its folder, with transformers' names."""

    base: str | None
    revision: str | None
    config: dict[str, Any]
    state: legacy.State


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA in either naming of the modules."""
    config = checkpoint.read_json(folder / checkpoint.ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"the adapter in `{folder}` is of type `{config.get('peft_type')}`", "pass a LoRA")
    _check_settings(config, folder / checkpoint.ADAPTER_CONFIG)
    state = checkpoint.read_weights(folder, checkpoint.ADAPTER_WEIGHTS)
    renamed, translated = legacy.adapter_to_native(state, config)
    return Adapter(config.get("base_model_name_or_path"), config.get("revision"), translated, renamed)


def _check_settings(config: Mapping[str, Any], path: Path) -> None:
    """Refuse an alpha that is no number, and settings by module that are no mapping to numbers, or no list of names."""
    alpha = config.get("lora_alpha")
    if alpha is not None and not is_finite_number(alpha):
        raise _wrong(path, "lora_alpha", alpha, "a number")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or not all(map(is_finite_number, pattern.values())):
            raise _wrong(path, key, pattern, "a mapping of modules to numbers")
        for expression in pattern:
            try:
                is_slow = _has_nested_repeat(re._parser.parse(expression))  # type: ignore[attr-defined]
            except (re.error, OverflowError, RecursionError):
                raise _wrong(path, key, expression, "a mapping of modules to numbers") from None
            if is_slow:
                raise _wrong(path, key, expression, "an expression without repeats inside repeats")
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _wrong(path, "modules_to_save", names, "a list of names")


def _has_nested_repeat(parts: Any, *, is_repeated: bool = False) -> bool:
    """Return whether a parsed regular expression repeats what has repeats or branches: it may take for ever."""
    for name, value in parts:
        is_repeat, is_branch = "REPEAT" in str(name), str(name) == "BRANCH"
        if is_repeated and (is_branch or (is_repeat and value[0] != value[1])):
            return True
        inner = (
            value[1] if is_branch else [each for each in value if hasattr(each, "data")] if type(value) is tuple else []
        )
        is_inside = is_repeated or (is_repeat and value[1] > 1)
        if any(_has_nested_repeat(each, is_repeated=is_inside) for each in inner):
            return True
    return False


def _wrong(path: Path, key: str, value: Any, expected: str) -> CheckpointError:
    found = f"{key}: {value!r}"[:100]
    return CheckpointError(f"`{path}` has `{found}`, and not {expected}", "copy or download it again")


def base_name(folder: Path, adapter: Adapter, base: str | Path | None) -> str:
    """Return the name of an adapter's base, `base` or the one it names, which may be relative to its folder."""
    name = str(base or adapter.base or "")
    if not name:
        raise CheckpointError(f"the adapter in `{folder}` does not name its base", _BASE_HINT)
    relative = folder / name
    if not Path(name).exists() and relative.is_dir():
        name = str(relative)
    if Path(name).is_dir() and Path(name).resolve() == folder.resolve():
        raise CheckpointError(f"the adapter in `{folder}` names itself as its base", _BASE_HINT)
    return name


def base_revision(adapter: Adapter, base: str | Path | None) -> str | None:
    """Return the revision that an adapter names, which is one of the base that it names."""
    return adapter.revision if base in (None, adapter.base) else None


@contextmanager
def base_errors(folder: Path, name: str) -> Iterator[None]:
    """Name the adapter and its base in an error of the base."""
    try:
        yield
    except UserError as error:
        raise CheckpointError(f"the adapter in `{folder}` needs its base `{name}`: {error.what}", _BASE_HINT) from None
