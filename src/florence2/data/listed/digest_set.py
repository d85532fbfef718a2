"""A set of keys in about 25 bytes each, whatever their length: it stores a digest of 128 bits in place of a key."""

from collections.abc import Iterator
from hashlib import blake2b

DIGEST_BYTES = 16
_FIRST_BUCKETS = 64
_MAX_IN_BUCKET = 64  # on average
_GROWTH = 4


def digest_key(*parts: str) -> bytes:
    """Return the BLAKE2b digest of a key; different keys have different digests.

    That two of n keys have one digest has a chance of n^2 / 2^129: 1.5e-21 for a billion keys.
    """
    text = "\0".join(parts)
    if text.count("\0") >= len(parts):  # a part has the separator in it: lengths tell where the parts end
        text = "\0".join((text, *(str(len(part)) for part in parts)))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


class DigestSet:
    """A set of digests: they stand one after the other in the strings of bytes of a table.

    A set of Python needs about 100 bytes for a digest, and more for a key. One thread may add while others search.
    """

    def __init__(self) -> None:
        self._buckets = [b""] * _FIRST_BUCKETS
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, digest: bytes) -> bool:
        buckets = self._buckets
        return digest in buckets[_bucket_number(digest, buckets)]

    def __iter__(self) -> Iterator[bytes]:
        for bucket in self._buckets:
            yield from _split_digests(bucket)

    def add(self, digest: bytes) -> bool:
        """Add a digest; return whether it is new."""
        buckets = self._buckets
        number = _bucket_number(digest, buckets)
        if digest in buckets[number]:
            return False
        buckets[number] += digest
        self._length += 1
        if self._length > _MAX_IN_BUCKET * len(buckets):
            self._buckets = _spread(buckets)
        return True

    def has_common(self, other: "DigestSet") -> bool:
        """Return whether two sets have a digest in common."""
        smaller, larger = sorted((self, other), key=len)
        return any(digest in larger for digest in smaller)


def _bucket_number(digest: bytes, buckets: list[bytes]) -> int:
    return int.from_bytes(digest[:4], "little") % len(buckets)


def _split_digests(bucket: bytes) -> Iterator[bytes]:
    for start in range(0, len(bucket), DIGEST_BYTES):
        yield bucket[start : start + DIGEST_BYTES]


def _spread(buckets: list[bytes]) -> list[bytes]:
    """Return more buckets with the same digests."""
    spread = [b""] * (_GROWTH * len(buckets))
    for bucket in buckets:
        parts: dict[int, list[bytes]] = {}
        for digest in _split_digests(bucket):
            parts.setdefault(_bucket_number(digest, spread), []).append(digest)
        for number, digests in parts.items():
            spread[number] = b"".join(digests)
    return spread
