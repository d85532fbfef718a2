"""The check of what a user passes to `florence2 doctor`: a checkpoint, an adapter or a dataset."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

import florence2
from florence2.api import check_dataset
from florence2.errors import OptionError, UserError

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
BUNDLED = "demo"


@dataclass(frozen=True)
class Problem:
    """What is wrong, and how to fix it."""

    what: str
    hint: str

    @classmethod
    def of_error(cls, error: UserError) -> Problem:
        """Return the problem that an error reports."""
        return cls(error.what, error.hint)


@dataclass(frozen=True)
class PathReport:
    """What a path holds, its facts, and its problems; `loaded` is the model with its processor, where it loads."""

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    loaded: tuple[Any, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        problems = [{"what": problem.what, "hint": problem.hint} for problem in self.problems]
        return {"path": self.path, "kind": self.kind, "sound": not problems, **self.facts, "problems": problems}


def check_path(path: str, dtype: Any, revision: str | None = None, base_model: str | None = None) -> PathReport:
    """Check a model by loading it onto the CPU, or a dataset as `florence2 data check` does."""
    folder = model_folder(path, revision)
    if folder is not None or is_model_name(path):
        return check_model(path, folder, dtype, revision, base_model)
    if base_model is not None:
        raise OptionError(f"`{path}` is not an adapter and takes no base", "remove `--base_model`")
    try:
        report = check_dataset(dataset=path, offline=True)
    except UserError as error:
        hint = error.hint.replace("pass --recursive", f"run `florence2 data check {path} --recursive`")
        hint = hint.replace("run once without --offline", f"run `florence2 data check {path}`, which downloads it")
        return PathReport(path, "dataset", {}, (Problem(error.what, hint),))
    first = {issue.kind: f"{issue.where}: {issue.what}" for issue in reversed(report.issues)}
    hint = f"`florence2 data check {path}` lists all"
    problems = tuple(
        Problem(f"{number:,} {kind}; the first is {first[kind]}", hint)
        for kind, number in report.issue_counts().items()
    )
    facts = {key: value for key, value in report.to_json().items() if key not in {"dataset", "issues"}}
    return PathReport(path, "dataset", facts, problems)


def check_model(path: str, folder: Path | None, dtype: Any, revision: str | None, base_model: str | None) -> PathReport:
    """Load a model as the commands do, which refuses missing, unexpected, misshapen and non-finite weights by name."""
    if folder is not None and _is_export(folder):
        return check_export(path, folder)
    kind = "adapter" if folder is not None and _is_adapter(folder) else "checkpoint"
    facts = describe_files(folder) if folder is not None else {}
    try:
        model, processor = florence2.load(
            path, dtype=dtype, device="cpu", revision=revision, offline=True, base=base_model
        )
    except UserError as error:
        return PathReport(path, kind, facts, (Problem.of_error(error),))
    return PathReport(path, kind, facts | describe_model(model, processor), (), (model, processor))


def check_export(path: str, folder: Path) -> PathReport:
    """Load the graphs that `florence2 export` wrote, as onnxruntime or OpenVINO does."""
    written = _read(folder / "export.json")
    facts: dict[str, Any] = {
        "folder": str(folder),
        **{key: written[key] for key in ("target", "dtype", "model") if key in written},
    }
    try:
        florence2.load_exported(folder)
    except UserError as error:
        return PathReport(path, "export", facts, (Problem.of_error(error),))
    return PathReport(path, "export", facts)


def is_model_name(path: str) -> bool:
    """Return whether a name can only be a model: the bundled one, or a hub id that is no local path."""
    return path == BUNDLED or (not Path(path).exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) is not None)


def model_folder(path: str, revision: str | None) -> Path | None:
    """Return the folder with the files of a model on this machine; None where `path` holds no model."""
    folder = Path(path).expanduser()
    if path == BUNDLED:
        return Path(florence2.__file__).parent / "demo" / "model"
    if folder.is_dir():
        candidates = [folder, *sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)]
        files = [each for each in candidates if (each / CONFIG).is_file() or (each / ADAPTER_CONFIG).is_file()]
        return files[0] if files else None
    if folder.exists() or not is_model_name(path):
        return None
    for name in (CONFIG, ADAPTER_CONFIG):
        cached = try_to_load_from_cache(path, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def describe_files(folder: Path) -> dict[str, Any]:
    """Read the headers of the weights, the layout and the metadata of a run, without a tensor."""
    raw, adapter = _read(folder / CONFIG), _read(folder / ADAPTER_CONFIG)
    vision = raw.get("vision_config")
    facts: dict[str, Any] = {"folder": str(folder), "weights": [_describe_weights(each) for each in _weights(folder)]}
    if raw:
        is_native = isinstance(vision, dict) and vision.get("model_type") == "florence_vision"
        facts["layout"] = "transformers" if is_native else "Microsoft"
    if adapter:
        facts |= {"base": adapter.get("base_model_name_or_path"), "rank": adapter.get("r")}
    if metadata := _read(folder / "training_settings.json"):
        facts |= {"trained_from": metadata.get("base"), "task": metadata.get("task")}
    return facts


def describe_model(model: Any, processor: Any) -> dict[str, Any]:
    """Return the numbers of a loaded model."""
    size = processor.image_processor.size
    return {
        "parameters": int(model.num_parameters()),
        "vocabulary": int(model.config.text_config.vocab_size),
        "positions": int(model.config.text_config.max_position_embeddings),
        "image_size": [int(size["height"]), int(size["width"])],
        "image_tokens": int(processor.image_processor.image_seq_length),
        "tied_output_layer": bool(model.config.tie_word_embeddings),
    }


def _weights(folder: Path) -> list[Path]:
    names = ("*model*.safetensors", "*model*.bin")
    return sorted(path for name in names for path in folder.glob(name))


def _describe_weights(path: Path) -> dict[str, Any]:
    description: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size}
    if path.suffix != ".safetensors":
        return description
    try:
        with safe_open(path, framework="numpy") as file:
            dtypes = Counter(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError):  # the loader reports it
        return description | {"damaged": True}
    return description | {"tensors": dtypes.total(), "dtypes": dict(dtypes)}


def _is_export(folder: Path) -> bool:
    """Return whether a folder has graphs and no weights."""
    return any((folder / name).is_dir() for name in ("onnx", "openvino")) and not _weights(folder)


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("model*.safetensors"))


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none, for the loader reports what is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
