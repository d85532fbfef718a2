"""Find a checkpoint, on disk or on the hub, and read its files safely.

Nothing here runs code of a checkpoint or unpickles more than tensors. It knows file names; it does not know what a
tensor means (see `legacy.py`) or how a model is built from them (see `load.py`).
"""

import errno
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's own, or its successor's
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers.models.roberta.tokenization_roberta import RobertaTokenizer

from florence2.errors import UserError
from florence2.model.tasks import SPECIAL_TOKENS

IMAGE_TOKEN = "<image>"
_LAYOUT_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", IMAGE_TOKEN)
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
# One of these holds the weights, the first that exists; `.index.json` lists the files of a checkpoint in several.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_SMALL_FILES = ["*.json", "merges.txt"]
_SAFE_FILES = ["model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors"]
_PICKLED_FILES = ["pytorch_model.bin", "pytorch_model-*-of-*.bin", "adapter_model.bin"]
_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?$")
DEMO = "demo"  # names the small model in this package, whatever folder of that name there may be
_DEMO = Path(__file__).parents[2] / "demo" / "model"


def find_folder(name: str, revision: str | None = None, offline: bool = False) -> Path:
    """Return the local folder of a checkpoint or adapter, fetched from the hub where `name` is no path.

    A trainer's output folder that holds only `checkpoint-N` folders answers with the last of them.
    """
    path = _DEMO if name == DEMO else Path(name).expanduser()
    if name and path.is_dir():
        return _find_checkpoint(path)
    if path.is_file():
        raise UserError(f"`{name}` is a file", f"give the folder it is in: `{path.parent}`")
    if not _HUB_ID.match(name) or name.startswith("."):
        raise UserError(f"there is no folder `{name}`", "give an existing folder, or a hub id such as `owner/name`")
    folder = _fetch(name, revision, offline, [*_SMALL_FILES, *_SAFE_FILES])
    if not any((folder / file).exists() for file in (*_SAFE_FILES, f"{WEIGHTS[0]}.index.json")):
        folder = _fetch(name, revision, offline, _PICKLED_FILES)
    return folder


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter that is not already merged into weights beside it."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    return any((folder / file).is_file() for file in ADAPTER_WEIGHTS) or not (folder / CONFIG).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged file is an error in one line."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"`{path.parent}` has no `{path.name}`", "give the folder of a Florence-2 model") from None
    except (ValueError, OSError) as error:
        raise UserError(f"`{path}` cannot be read: {_first_line(error)}", "copy or download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"`{path}` is not a JSON object", "copy or download it again")
    return content


def read_weights(folder: Path, names: tuple[str, ...] = WEIGHTS) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint as they are stored; safetensors come first, in one file or several."""
    for name in names:
        if (folder / name).is_file():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    raise UserError(
        f"`{folder}` has no weights: none of {', '.join(f'`{name}`' for name in names)} is there",
        "copy or download the folder again",
    )


def read_tokenizer(folder: Path) -> RobertaTokenizer:
    """Read the tokenizer, with all task tokens and `<image>` in it."""
    path = folder / "tokenizer.json"
    if not path.is_file() and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise UserError(f"`{folder}` has no `{path.name}`", "copy it from the base model")
    try:
        backend = (
            Tokenizer.from_file(str(path))
            if path.is_file()
            else _tokenizer_of(folder / "vocab.json", folder / "merges.txt")
        )
    except Exception as error:  # tokenizers raises nothing narrower
        raise _damaged(path, error) from None
    # One call, in the order of the ids; tokens that are there keep theirs.
    backend.add_special_tokens([*SPECIAL_TOKENS, IMAGE_TOKEN])
    extra = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items()) if token.special]
    named = folder / "tokenizer_config.json"
    limit = read_json(named).get("model_max_length") if named.is_file() else None
    return RobertaTokenizer(
        tokenizer_object=backend,
        image_token=IMAGE_TOKEN,
        extra_special_tokens=[token for token in extra if token not in _LAYOUT_TOKENS],
        model_max_length=limit or 1024,
    )


def _tokenizer_of(vocabulary: Path, merges: Path) -> Tokenizer:
    """Make the tokenizer of exports that are older than `tokenizer.json`."""
    pairs = [tuple(line.split()) for line in merges.read_text("utf-8").splitlines() if not line.startswith("#version")]
    made: Tokenizer = RobertaTokenizer(vocab=read_json(vocabulary), merges=pairs).backend_tokenizer
    return made


def _find_checkpoint(folder: Path) -> Path:
    if (folder / CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file():
        return folder
    steps = {
        int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for step in sorted(steps, reverse=True):
        if (steps[step] / CONFIG).is_file() or (steps[step] / ADAPTER_CONFIG).is_file():
            return steps[step]
    raise UserError(
        f"`{folder}` has no `{CONFIG}` and no `{ADAPTER_CONFIG}`",
        "give the folder of a Florence-2 model or of an adapter for one",
    )


def _fetch(name: str, revision: str | None, offline: bool, patterns: list[str]) -> Path:
    with _hub_errors(name, revision):
        folder = snapshot_download(
            name, revision=revision, local_files_only=offline, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    return Path(folder)


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into one line each, the narrow errors before the wide ones."""
    try:
        yield
    except hub.GatedRepoError:
        raise UserError(
            f"`{name}` is gated, and this account may not read it", "ask for access on its page, then `hf auth login`"
        ) from None
    except hub.RevisionNotFoundError:
        raise UserError(f"`{name}` has no revision `{revision}`", "give a branch, tag or commit that exists") from None
    except hub.RepositoryNotFoundError:
        raise UserError(
            f"there is no folder `{name}` and no model of that name on the hub",
            "check the spelling; if the model is private, `hf auth login` first",
        ) from None
    except hub.HFValidationError as error:
        raise UserError(f"`{name}` is no hub id: {_first_line(error)}", "give `owner/name` or a folder") from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        if isinstance(error.__cause__, hub.HfHubHTTPError):
            raise _refused(name, error.__cause__) from None
        at = f" at revision `{revision}`" if revision else ""
        raise UserError(
            f"there is no folder `{name}`, and the hub's cache has no whole copy of it{at}",
            "connect to the internet, unset `HF_HUB_OFFLINE` and `--offline`, or give a local folder",
        ) from None
    except hub.HfHubHTTPError as error:
        raise _refused(name, error) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise UserError(f"`{name}` cannot be fetched: {_first_line(error)}", "try again") from None
        raise UserError(
            f"the disk is full: `{name}` cannot be stored", "free some space, or point `HF_HOME` to another disk"
        ) from None
    except HTTPError as error:
        raise UserError(
            f"the connection to the hub broke while fetching `{name}`: {_first_line(error)}", "try again"
        ) from None


def _refused(name: str, error: hub.HfHubHTTPError) -> UserError:
    status = error.response.status_code
    hint = "`hf auth login` first" if status in (401, 403) else "try again later, or give a local folder"
    return UserError(f"the hub refused `{name}` with status {status}", hint)


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"`{index}` has no `weight_map`", "copy or download it again")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        path = index.parent / Path(name).name
        if not path.is_file():
            raise UserError(f"`{path}` is missing, and `{index.name}` asks for it", "copy or download it again")
        state |= _read_file(path)
    return state


def _read_file(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise UserError(f"`{path}` is a git-lfs pointer, not the weights", "run `git lfs pull` in its folder")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except pickle.UnpicklingError as error:
        # A whole archive whose table is refused, or a table that names a function; all else is no table at all.
        if not zipfile.is_zipfile(path) and "GLOBAL" not in str(error):
            raise _damaged(path, ValueError("it is no file of torch")) from None
        raise UserError(
            f"`{path}` holds more than tensors, and reading it could run its code",
            "use a `.safetensors` copy of these weights",
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise _damaged(path, error) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"`{path}` is not a table of tensors", "give the weights alone, without optimizer or epoch")
    return state


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"`{path}` is damaged: {_first_line(error)}", "copy or download it again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
