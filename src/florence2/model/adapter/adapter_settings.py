"""The settings of an adapter as any version of peft wrote them: those that apply here, and those that are refused."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import peft
from peft import LoraConfig

from florence2.errors import CheckpointError
from florence2.log import logger

# Kinds of LoRA that cannot be merged, or that change more than the layers they are added to.
_UNSUPPORTED = (
    *("alora_invocation_tokens", "arrow_config", "layer_replication", "megatron_config", "trainable_token_indices"),
)
# The name of a module, which peft imports: code that an adapter chooses.
_UNSAFE = ("megatron_core",)
# Keys of peft before 0.3, which say how its layers were used and not what they compute.
_OBSOLETE = ("enable_lora", "merge_weights")


def read_lora_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of peft's `LoraConfig` that an adapter sets.

    A key that the installed peft does not know has no effect: it is named in the log, or refused where it switches
    something on. So is a kind of LoRA that this package cannot apply.
    """
    known = {field.name for field in fields(LoraConfig)}
    for name in _UNSUPPORTED:
        if config.get(name):
            raise CheckpointError(f"the adapter sets `{name}`, which is not supported here", "pass a plain LoRA")
    unknown = {
        key: value
        for key, value in config.items()
        if key not in known and key not in _OBSOLETE and value not in (None, False, "", [], {})
    }
    if unknown:
        _check_unknown(unknown, config.get("peft_version"))
    return {key: value for key, value in config.items() if key in known and key not in _UNSAFE and value is not None}


def _check_unknown(unknown: Mapping[str, Any], written_by: Any) -> None:
    """Refuse an unknown key that switches something on; name the others in the log."""
    origin = f", written by peft {written_by}," if written_by else ""
    for key, value in sorted(unknown.items()):
        if value is True or isinstance(value, dict | list):
            raise CheckpointError(
                f"the adapter{origin} sets `{key}`, which peft {peft.__version__} does not know",
                "upgrade peft, or remove the key from `adapter_config.json` if it has no effect on the weights",
            )
    names = ", ".join(f"`{key}` ({value})" for key, value in sorted(unknown.items()))
    logger.warning(f"the adapter{origin} has settings that peft {peft.__version__} does not know: {names}; ignored")
