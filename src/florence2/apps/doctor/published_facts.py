"""Published facts about checkpoints: sizes and hashes of their files, and the tokens that they answer on known images.

The facts are data with their sources, in `published.json` beside this module or in a file of the same form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from florence2.errors import OptionError

PUBLISHED = Path(__file__).with_name("published.json")
_FORM_HINT = "see `published.json` in the package for the form of the file"


@dataclass(frozen=True)
class PublishedFile:
    """The size of a file in bytes and its SHA-256; None where it is not known."""

    bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class PublishedImage:
    """The file name of an image in the folder that the user passes, and where it is downloaded from."""

    file: str
    url: str | None = None


@dataclass(frozen=True)
class PublishedExample:
    """The tokens that a checkpoint generates for an image and a task, from the start token to the end token."""

    image: str
    task: str
    input: str
    max_new_tokens: int
    num_beams: int
    no_repeat_ngram_size: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PublishedModel:
    """What is published about one checkpoint."""

    name: str
    revision: str | None
    tensors: int | None
    files: Mapping[str, PublishedFile]
    examples: tuple[PublishedExample, ...]


@dataclass(frozen=True)
class PublishedFacts:
    """The facts of one file: their sources, the images and the checkpoints."""

    sources: Mapping[str, str]
    images: Mapping[str, PublishedImage]
    models: Mapping[str, PublishedModel]

    @classmethod
    def read(cls, path: Path) -> PublishedFacts:
        """Read a file of facts; raise OptionError where it has another form."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            examples = {
                name: tuple(PublishedExample(**{**row, "token_ids": tuple(row["token_ids"])}) for row in rows)
                for name, rows in raw["examples"].items()
            }
            models = {
                name: PublishedModel(
                    name,
                    row.get("revision"),
                    row.get("tensors"),
                    {file: PublishedFile(**facts) for file, facts in row["files"].items()},
                    examples.get(row.get("examples"), ()),
                )
                for name, row in raw["models"].items()
            }
            images = {name: PublishedImage(**row) for name, row in raw["images"].items()}
            return cls(raw.get("sources", {}), images, models)
        except OSError as error:
            raise OptionError(f"{path} cannot be read: {error.strerror}", "pass a file to `--expected`") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"{path} has no published facts: {error}", _FORM_HINT) from error

    def find(self, name: str, folder: Path | None) -> PublishedModel:
        """Find a checkpoint by its hub id, as the only one of the facts, or by the hash of its weights."""
        if name in self.models:
            return self.models[name]
        if len(self.models) == 1:
            return next(iter(self.models.values()))
        for model in self.models.values():
            for file, facts in model.files.items():
                path = folder / file if folder and file.startswith(("model", "pytorch_model")) else None
                if path and path.is_file() and facts.sha256 and sha256_of(path) == facts.sha256:
                    return model
        known = ", ".join(f"`{each}`" for each in self.models)
        raise OptionError(f"nothing is published about `{name}`", f"pass one of {known}, or a copy of its files")


def sha256_of(path: Path) -> str:
    """Hash a file, a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
