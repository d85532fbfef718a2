"""The files of a checkpoint or adapter: found on disk or on the hub, and read safely.

No code of a checkpoint is run, and only tensors are unpickled.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from florence2.errors import CheckpointError
from florence2.files import parse_json, require_utf8_path
from florence2.model.storage.check_settings import check_location_ids, check_max_length
from florence2.model.tasks import NUM_BINS, SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers.models.roberta.tokenization_roberta import RobertaTokenizer

IMAGE_TOKEN = "<image>"
_LAYOUT_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", IMAGE_TOKEN)
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
# The first of these that exists holds the weights; `.index.json` lists the shards of sharded weights.
GRAPH_FOLDERS = ("onnx", "openvino")  # what `florence2 export` writes in place of weights
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_SMALL_FILES = ["*.json", "merges.txt"]
_SAFE_FILES = ["model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors"]
_PICKLED_FILES = ["pytorch_model.bin", "pytorch_model-*-of-*.bin", "adapter_model.bin"]
_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?$")
DEMO = "demo"  # the bundled model, even where a folder has this name
_DEMO = Path(__file__).parents[2] / "demo" / "model"


def find_folder(name: str, revision: str | None = None, offline: bool = False) -> Path:
    """Return the local folder of a checkpoint or adapter, downloaded from the hub where `name` is not a path.

    The folder of a trainer's output that has only `checkpoint-N` folders is the last of them.
    """
    path = _DEMO if name == DEMO else Path(name).expanduser()
    if name and path.is_dir():
        require_utf8_path(path)
        return _find_checkpoint(path)
    if path.is_file():
        raise CheckpointError(f"`{name}` is a file", f"pass its folder: `{path.parent}`")
    if not _HUB_ID.match(name) or name.startswith("."):
        raise CheckpointError(
            f"there is no folder `{name}`", "pass an existing folder, or a hub id such as `owner/name`"
        )
    from florence2.model.storage.hub_download import download  # imports an HTTP client

    folder = download(name, revision, offline, [*_SMALL_FILES, *_SAFE_FILES])
    if not any((folder / file).exists() for file in (*_SAFE_FILES, f"{WEIGHTS[0]}.index.json")):
        folder = download(name, revision, offline, _PICKLED_FILES)
    return folder


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, and not a checkpoint that it is merged into."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    return any((folder / file).is_file() for file in ADAPTER_WEIGHTS) or not (folder / CONFIG).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise CheckpointError for a missing or damaged file."""
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(
            f"`{path.parent}` has no `{path.name}`", "pass the folder of a Florence-2 model"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {first_line(error)}", "copy or download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` is not a JSON object", "copy or download it again")
    return content


def read_weights(folder: Path, names: tuple[str, ...] = WEIGHTS) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint as they are stored, from one file or shards, safetensors first."""
    for name in names:
        if (folder / name).is_file():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    if any((folder / graphs).is_dir() for graphs in GRAPH_FOLDERS):
        raise CheckpointError(
            f"`{folder}` has the graphs of an export, and no weights",
            "pass the model that was exported; in Python, `florence2.load_exported` runs the graphs",
        )
    raise CheckpointError(
        f"`{folder}` has no weights: none of {', '.join(f'`{name}`' for name in names)} exists",
        "copy or download the complete folder again",
    )


def read_tokenizer(folder: Path) -> RobertaTokenizer:
    """Read transformers' tokenizer with all special tokens of Florence-2 and `<image>`."""
    from transformers.models.roberta.tokenization_roberta import RobertaTokenizer

    backend = read_backend_tokenizer(folder)
    special = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items()) if token.special]
    config = folder / "tokenizer_config.json"
    max_length = check_max_length(read_json(config).get("model_max_length") if config.is_file() else None, config)
    with _tokenizer_errors(folder / "tokenizer.json"):
        return RobertaTokenizer(
            tokenizer_object=backend,
            image_token=IMAGE_TOKEN,
            extra_special_tokens=[token for token in special if token not in _LAYOUT_TOKENS],
            model_max_length=max_length,
        )


def read_backend_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of the library tokenizers, with all special tokens of Florence-2 and `<image>`."""
    path = folder / "tokenizer.json"
    if not path.is_file() and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise CheckpointError(f"`{folder}` has no `{path.name}`", "copy it from the base model")
    with _tokenizer_errors(path):
        backend = (
            Tokenizer.from_file(str(path))
            if path.is_file()
            else _build_tokenizer(folder / "vocab.json", folder / "merges.txt")
        )
        # One call, in the order of the ids; existing tokens keep their ids.
        backend.add_special_tokens([*SPECIAL_TOKENS, IMAGE_TOKEN])
    check_location_ids([backend.token_to_id(f"<loc_{number}>") or 0 for number in range(NUM_BINS)], path)
    return backend


@contextmanager
def _tokenizer_errors(path: Path) -> Iterator[None]:
    """Convert the errors of tokenizers to CheckpointError; it raises nothing narrower, and panics are no Exception."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise _damaged(path, error) from None
        raise


def _build_tokenizer(vocabulary: Path, merges: Path) -> Tokenizer:
    """Build the tokenizer of older exports, which have no `tokenizer.json`."""
    from transformers.models.roberta.tokenization_roberta import RobertaTokenizer

    pairs = [tuple(line.split()) for line in merges.read_text("utf-8").splitlines() if not line.startswith("#version")]
    tokenizer: Tokenizer = RobertaTokenizer(vocab=read_json(vocabulary), merges=pairs).backend_tokenizer
    return tokenizer


def _find_checkpoint(folder: Path) -> Path:
    if (folder / CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file():
        return folder
    steps = {
        int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for step in sorted(steps, reverse=True):
        if (steps[step] / CONFIG).is_file() or (steps[step] / ADAPTER_CONFIG).is_file():
            return steps[step]
    raise CheckpointError(
        f"`{folder}` has no `{CONFIG}` and no `{ADAPTER_CONFIG}`",
        "pass the folder of a Florence-2 model or of an adapter",
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"`{index}` has no `weight_map` of file names", "copy or download it again")
    state: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        path = index.parent / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"`{path}`, which `{index.name}` lists, is missing", "copy or download it again")
        state |= _read_file(path)
    return state


def _read_file(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"`{path}` is a git-lfs pointer, not the weights", "run `git lfs pull` in its folder")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except pickle.UnpicklingError as error:
        # An intact archive whose pickle is refused, or a pickle with a function; everything else is damaged.
        if not zipfile.is_zipfile(path) and "GLOBAL" not in str(error):
            raise _damaged(path, ValueError("it is not a file of torch")) from None
        raise CheckpointError(
            f"`{path}` holds more than tensors, and could run code when it is read",
            "use a `.safetensors` copy of these weights",
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # the readers raise nearly every kind of error for damaged bytes
        raise _damaged(path, error) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of pickle protocols that torch does not write itself
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"`{path}` is not a dictionary of tensors", "save the state dict alone, without optimizer or epoch"
        )
    return state


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"`{path}` is damaged: {first_line(error)}", "copy or download it again")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
