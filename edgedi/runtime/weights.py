"""Weights by content: named by the digest of their bytes, kept once for all sessions, forgotten least recently used."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable

from torch import Tensor

from edgedi.runtime.tensors import to_wire


def weight_digest(tensor: Tensor) -> str:
    """SHA-256 of element type, shape and bytes, as hexadecimal digits."""
    buffer, dtype, shape, _ = to_wire(tensor)
    hasher = hashlib.sha256(f"{dtype}{shape}".encode())
    hasher.update(buffer)
    return hasher.hexdigest()


class WeightStore:
    """Tensors by digest. Those in use stay; of the others as many as fit into ``limit_bytes`` stay for a next session."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._tensors: OrderedDict[str, Tensor] = OrderedDict()
        self._users: Counter[str] = Counter()

    def __contains__(self, digest: str) -> bool:
        return digest in self._tensors

    def __getitem__(self, digest: str) -> Tensor:
        self._tensors.move_to_end(digest)
        return self._tensors[digest]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._tensors.values())

    def missing(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Those of ``digests`` that are not here, each once."""
        return tuple(digest for digest in dict.fromkeys(digests) if digest not in self._tensors)

    def add(self, digest: str, tensor: Tensor) -> None:
        """Keep ``tensor``. ``ValueError`` if its content is not what its name says."""
        if weight_digest(tensor) != digest:
            raise ValueError(f"weights named {digest[:12]} have other content")
        self._tensors[digest] = tensor

    def use(self, digests: Iterable[str]) -> None:
        """Pin ``digests`` for one more program."""
        self._users.update(set(digests))

    def release(self, digests: Iterable[str]) -> None:
        """Unpin them again, and forget the least recently used unpinned ones beyond the limit."""
        self._users.subtract(set(digests))
        self._users = +self._users
        self.trim()

    def trim(self) -> None:
        """Forget unpinned tensors, oldest first, until what is held fits into the limit."""
        if self._limit_bytes is None:
            return
        excess = self.num_bytes - self._limit_bytes
        for digest in [d for d in self._tensors if d not in self._users]:
            if excess <= 0:
                return
            tensor = self._tensors.pop(digest)
            excess -= tensor.numel() * tensor.element_size()
