"""The images that rows of predictions name where the images are no files: within tars, and at addresses."""

import posixpath
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from florence2.data.image import ImageSource
from florence2.data.stores.remote_image import RemoteImage
from florence2.data.stores.store_path import AnyPath, StorePath, is_address, to_path
from florence2.data.streams.tars.tar_records import TarImage, read_tar
from florence2.data.tables import Row
from florence2.errors import DatasetError

StoredImage = Callable[[], ImageSource]

_WITHIN_TAR = re.compile(r"(.+?\.tar)/(.+)", re.DOTALL)


class StoredImages:
    """Finds the images of a table's rows; the positions within the last tar are remembered, because rows follow it."""

    def __init__(self, folder: AnyPath) -> None:
        """Take the folder of the table."""
        self._folder = folder
        self._tar: AnyPath | None = None
        self._images: Mapping[str, StoredImage] = {}

    def find(self, row: Row, name: str) -> StoredImage | None:
        """Return the image that a row names below its `image_dir`; None where it is neither in a tar nor in a store."""
        plain = posixpath.normpath(name.replace("\\", "/"))
        if plain.startswith(("/", "..")):
            return None
        address = f"{self._root(row.get('image_dir'))}/{plain}"
        if match := _WITHIN_TAR.fullmatch(address):
            return self._find_in_tar(to_path(match[1]), match[2])
        return RemoteImage(address) if is_address(address) else None

    def _root(self, image_dir: object) -> str:
        if not isinstance(image_dir, str) or not image_dir:
            return str(self._folder)
        if is_address(image_dir) or (isinstance(self._folder, StorePath) and Path(image_dir).is_absolute()):
            return str(to_path(image_dir)).rstrip("/")
        if isinstance(self._folder, StorePath):
            scheme, _, path = self._folder.address.partition("://")
            return f"{scheme}://{posixpath.normpath(posixpath.join(path, image_dir))}"
        return str((self._folder / image_dir).resolve())

    def _find_in_tar(self, tar: AnyPath, name: str) -> StoredImage | None:
        if tar != self._tar:
            self._tar, self._images = tar, _tar_images(tar) if tar.is_file() else {}
        return self._images.get(name)


def _tar_images(tar: AnyPath) -> dict[str, StoredImage]:
    """Return the images of a tar by the names of its records."""
    if isinstance(tar, Path):
        records = read_tar(tar, has_targets=False)
        return {record.name: record.image for record in records if isinstance(record.image, TarImage)}
    try:
        with tar.open() as file, tarfile.open(fileobj=file, mode="r:") as members:
            return {
                _record_name(each.name): StoredTarImage(tar, each.offset_data, each.size)
                for each in members
                if each.isfile()
            }
    except tarfile.TarError as error:
        raise DatasetError(f"{tar} is not a tar that can be read: {error}") from None


def _record_name(member: str) -> str:
    """Return the name of a record with this image: extensions are in lower case."""
    folder, slash, last = member.removeprefix("./").rpartition("/")
    stem, dot, extension = last.partition(".")
    return f"{folder}{slash}{stem}{dot}{extension.lower()}"


class StoredTarImage:
    """The position of an image within a tar in a store; a call requests its bytes."""

    def __init__(self, path: StorePath, offset: int, size: int) -> None:
        self._path, self._offset, self._size = path, offset, size

    def __call__(self) -> bytes:
        """Request the bytes."""
        return self._path.read_range(self._offset, self._offset + self._size)
