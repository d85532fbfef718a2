"""The folders that a client may read images from: every other path is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from florence2.errors import OptionError, UserError


@dataclass(frozen=True)
class AllowedRoots:
    """Folders with the images that may be read; links are followed before a path is compared with them."""

    folders: tuple[Path, ...]

    @classmethod
    def resolve(cls, names: Sequence[str]) -> AllowedRoots:
        """Resolve the folders that the user names; raise OptionError where one does not exist."""
        folders = tuple(Path(name).expanduser().resolve() for name in names)
        for name, folder in zip(names, folders, strict=True):
            if not folder.is_dir():
                raise OptionError(f"`--root {name}` is no folder", "pass existing folders to `--root`")
        return cls(folders)

    def find(self, name: str) -> Path:
        """Return the file that a client names, relative to a root, absolute, or as a `file:` URI.

        Raises UserError for a path outside of the roots, alike whether it exists there or not.
        """
        try:
            local = url2pathname(urlsplit(name).path) if name.lower().startswith("file://") else name
            candidates = [Path(local)] if Path(local).is_absolute() else [folder / local for folder in self.folders]
            inside = [path for each in candidates if self._contains(path := each.resolve())]
            files = [path for path in inside if path.is_file()]
        except (OSError, ValueError, RuntimeError):  # a name that is too long, has a null byte or is a loop of links
            inside = files = []
        if files:
            return files[0]
        roots = ", ".join(f"`{folder}`" for folder in self.folders)
        if inside:
            raise UserError(f"there is no image `{name}` in {roots}", "pass a path relative to one of these folders")
        raise UserError(f"`{name}` is not inside the folders that may be read: {roots}", "pass an image inside of them")

    def _contains(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self.folders)
