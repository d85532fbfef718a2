"""An image at an address, read when it is opened."""

from dataclasses import dataclass
from pathlib import Path

from florence2.data.image import ImageError, ImageSource
from florence2.data.stores.store_path import StorePath, is_address
from florence2.errors import DatasetError


@dataclass(frozen=True)
class RemoteImage:
    """An image at an address; a call returns its bytes."""

    address: str

    def __call__(self) -> ImageSource:
        """Read the bytes, with retries."""
        try:
            return StorePath(self.address).read_bytes()
        except DatasetError as error:
            raise ImageError(error.what, error.hint) from None

    @classmethod
    def or_path(cls, name: str) -> "RemoteImage | Path":
        """Return the image at an address, or the path of a local file."""
        return cls(name) if is_address(name) else Path(name)
