"""Export of a LoRA adapter for Microsoft's code: its module names instead of those of transformers."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from florence2.errors import CheckpointError, OptionError
from florence2.export.comparison import LogitsFn
from florence2.export.export_source import ExportSource
from florence2.export.layouts.torch_logits import torch_logits
from florence2.files import atomic_write
from florence2.model.adapter.adapter_files import Adapter
from florence2.model.load import load
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import legacy_layout as legacy

_COMMUNITY, _MICROSOFT = "florence-community/", "microsoft/"
# Fields of peft's LoraConfig that name parameters or layers in ways that full module paths do not replace.
_UNTRANSLATED = ("target_parameters", "trainable_token_indices", "layer_replication")
_USAGE = """
## Use

A LoRA for Microsoft's code, and for programs with its module names. Its base is `{base}`{note}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}", trust_remote_code=True)
model = PeftModel.from_pretrained(model, "path/to/this/folder")
```

`florence2 predict --model_path path/to/this/folder` reads it as well, on a base in either layout.
"""


def write(source: ExportSource, folder: Path, dtype: str, _: str) -> None:
    """Write the adapter and its config with Microsoft's names."""
    adapter = source.adapter
    if adapter is None:
        what = f"`--to adapter-microsoft` exports an adapter, and `{source.name}` is none"
        raise OptionError(what, "pass the folder of a LoRA adapter, or `--to microsoft`")
    _require_translatable(adapter, source.model.state_dict().keys())
    state, config = legacy.adapter_to_legacy(adapter.state, adapter.config, source.vocab_size)
    config["base_model_name_or_path"] = _base(source)
    tensors = {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / checkpoint.ADAPTER_WEIGHTS[0], metadata={"format": "pt"})
    with atomic_write(folder / checkpoint.ADAPTER_CONFIG) as file:
        file.write(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_logits(source: ExportSource, folder: Path) -> LogitsFn:
    """Apply the export to its base by the loader of this package, which converts Microsoft's names."""
    model, _ = load(folder, base=source.base_path, device="cpu", dtype="float32", offline=source.offline)
    return torch_logits(model)


def usage(source: ExportSource, _: Path) -> str:
    """Return the section of the README that says how to load the export."""
    base = _base(source)
    note = "" if base.startswith(_MICROSOFT) else ": export it with `--to microsoft`, unless it has that layout"
    return _USAGE.format(base=base, note=note)


def _base(source: ExportSource) -> str:
    """Return the base in Microsoft's layout where the hub has one, else the base of the adapter."""
    base = source.base_path
    is_pinned = source.adapter is not None and source.adapter.revision is not None
    return _MICROSOFT + base.removeprefix(_COMMUNITY) if base.startswith(_COMMUNITY) and not is_pinned else base


def _require_translatable(adapter: Adapter, tensors: Iterable[str]) -> None:
    """Raise CheckpointError for a module that Microsoft's code does not have as one module."""
    for field in _UNTRANSLATED:
        if value := adapter.config.get(field):
            raise _untranslatable(f"`{field}` {value}")
    native = set(tensors)
    microsoft = {legacy.PROJECTION[0] if name == legacy.PROJECTION[1] else legacy.legacy_name(name) for name in native}
    for path in _modules(adapter):
        translated = {legacy.legacy_name(name) for name in native if name.startswith(f"{path}.")}
        renamed = legacy.legacy_name(path)
        if not translated or translated != {name for name in microsoft if name.startswith(f"{renamed}.")}:
            raise _untranslatable(f"the module `{path}`")


def _modules(adapter: Adapter) -> Iterator[str]:
    """Yield the paths of the modules with a LoRA, and of those that are saved in full."""
    yield from legacy.adapted_modules(adapter.state)
    yield from adapter.config.get("modules_to_save") or ()


def _untranslatable(what: str) -> CheckpointError:
    return CheckpointError(
        f"{what} of the adapter has no counterpart in Microsoft's code", "merge it: export with `--to microsoft`"
    )
