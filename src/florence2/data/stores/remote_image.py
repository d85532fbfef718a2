"""An image at an address, read when it is opened."""

from dataclasses import dataclass
from pathlib import Path

from florence2.data.image import ImageError, ImageSource
from florence2.data.stores.offline import LOCAL_SCHEMES
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
    def of_row(cls, address: str, where: str, scheme: str = "") -> "RemoteImage":
        """Return the image that a row names; `scheme` is that of its table.

        An address of this machine leads out of the dataset's folder, and is refused.
        """
        named = address.partition("://")[0].lower()
        if "::" in address or (named in LOCAL_SCHEMES and named != scheme):
            raise DatasetError(f"{where}: `{address}` is no address of a store", "write the name of a file")
        return cls(address)

    @classmethod
    def or_path(cls, name: str) -> "RemoteImage | Path":
        """Return the image at an address, or the path of a local file."""
        return cls(name) if is_address(name) else Path(name)
