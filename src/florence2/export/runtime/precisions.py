"""The files of exported graphs: a graph of each precision has a suffix of its own."""

from collections.abc import Mapping
from pathlib import Path

from florence2.errors import CheckpointError, OptionError


def graph_path(folder: Path, part: str, suffix: str, extension: str) -> Path:
    """Return the path of one graph. Raises CheckpointError if it does not exist."""
    path = folder / f"{part}{suffix}.{extension}"
    if not path.is_file():
        raise CheckpointError(f"`{path}` does not exist", "copy the folder again, or repeat `florence2 export`")
    return path


def find_precision(folder: Path, first: str, suffixes: Mapping[str, str], dtype: str | None = None) -> str:
    """Return the precision of the graphs in a folder; where there are several, `dtype` chooses.

    `first` is the name of a graph with its extension, such as `vision_encoder.onnx`.
    """
    part, extension = first.split(".")
    found = [name for name, suffix in suffixes.items() if (folder / f"{part}{suffix}.{extension}").is_file()]
    if dtype in found:
        return str(dtype)
    if dtype is None and len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"`{folder}` has no `{first}`", "pass a folder of `florence2 export`")
    raise OptionError(f"`{folder}` has graphs in {', '.join(found)}", "pass one of them as `dtype`")
