"""Single images as shards: blocks of a sorted list of files, local or in a store."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from florence2.data.columns import ColumnMapping, DatasetRow, samples_from_rows
from florence2.data.sample import Sample, Skipped
from florence2.data.stores.remote_image import RemoteImage
from florence2.data.stores.store_path import AnyPath

BLOCK_IMAGES = 1000


@dataclass(frozen=True)
class ImageBlocks:
    """Images by id and path or address, in blocks of `BLOCK_IMAGES`; ids are relative to `root`."""

    name: str
    root: str
    images: tuple[tuple[str, str], ...]
    columns: ColumnMapping
    paths: tuple[AnyPath, ...] = ()

    @property
    def num_shards(self) -> int:
        """Return the number of blocks."""
        return -(-len(self.images) // BLOCK_IMAGES)

    def shard_name(self, index: int) -> str:
        """Return the number of a block and a digest of its ids: another list of images makes another name."""
        digest = hashlib.sha256("\n".join(each for each, _ in self._block(index)).encode(errors="surrogateescape"))
        return f"{index:05d}-{digest.hexdigest()[:8]}"

    def reader(self, index: int) -> Callable[[], Iterator[DatasetRow]]:
        """Return a function that lists the rows of a block."""
        return partial(_read_block, self._block(index))

    def read(self, index: int) -> Iterator[Sample | Skipped]:
        """List the samples of a block."""
        return samples_from_rows(self.reader(index)(), self.columns, "")

    def _block(self, index: int) -> tuple[tuple[str, str], ...]:
        return self.images[index * BLOCK_IMAGES : (index + 1) * BLOCK_IMAGES]


def _read_block(images: Sequence[tuple[str, str]]) -> Iterator[DatasetRow]:
    for image_id, path in images:
        yield DatasetRow(path, {"file_name": image_id}, Sample(image_id, RemoteImage.or_path(path), ""))
