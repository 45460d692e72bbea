"""Weights by content: named by the digest of their bytes, kept once for all sessions, forgotten least recently used."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable

from edgedi.runtime.execution.tensors import Tensor, to_wire
from edgedi.runtime.kernels.fused import Packer, plain

RETAINED_BYTES = 1_000_000_000
"""Weights that nobody uses any more and that stay for a next session, where no limit is set."""


def weight_digest(tensor: Tensor) -> str:
    """SHA-256 of element type, shape and bytes, as hexadecimal digits."""
    buffer, dtype, shape, _ = to_wire(tensor)
    hasher = hashlib.sha256(f"{dtype}{shape}".encode())
    hasher.update(buffer)
    return hasher.hexdigest()


class WeightStore:
    """Tensors by digest, on one device. Those in use stay; of the others, the latest used stay for a next session: as
    many as fit beside the used ones into ``limit_bytes``, or, without a limit, ``RETAINED_BYTES`` of them.
    """

    def __init__(self, limit_bytes: int | None = None, *, device: str = "cpu", packer: Packer | None = None) -> None:
        self._limit_bytes, self._device, self._packer = limit_bytes, device, packer
        self._tensors: OrderedDict[str, Tensor] = OrderedDict()
        self._users: Counter[str] = Counter()

    def __contains__(self, digest: str) -> bool:
        return digest in self._tensors

    def __getitem__(self, digest: str) -> Tensor:
        self._tensors.move_to_end(digest)
        return plain(self._tensors[digest])

    def lend(self, digest: str) -> Tensor:
        """The tensor for a program that loads: what is reordered of it from here on is known by its digest."""
        tensor = self[digest]
        return tensor if self._packer is None else self._packer.name(tensor, digest)

    def settle(self, digests: Iterable[str]) -> None:
        """After a program has loaded: of what it reordered keep that form only, so that every weight is held once."""
        if self._packer is None:
            return
        for digest in digests:
            packed = self._packer.any_of(digest)
            if packed is not None:
                self._tensors[digest] = packed
        self._packer.forget_names()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors held."""
        return self.bytes_of(self._tensors)

    @property
    def pinned_bytes(self) -> int:
        """Bytes of those in use."""
        return self.bytes_of(digest for digest in self._tensors if digest in self._users)

    def bytes_of(self, digests: Iterable[str]) -> int:
        """Bytes of ``digests``, each counted once; ``KeyError`` for one that is not here."""
        tensors = [self._tensors[digest] for digest in dict.fromkeys(digests)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def missing(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Those of ``digests`` that are not here, each once."""
        return tuple(digest for digest in dict.fromkeys(digests) if digest not in self._tensors)

    def add(self, digest: str, tensor: Tensor) -> None:
        """Keep ``tensor``. ``ValueError`` if it is not what its name says, ``RuntimeError`` if there is no room."""
        if weight_digest(tensor) != digest:
            raise ValueError(f"weights named {digest[:12]} have other content")
        self.put(digest, tensor)

    def put(self, digest: str, tensor: Tensor) -> None:
        """Keep ``tensor`` under a name that says nothing of its content."""
        self._tensors[digest] = tensor.to(self._device)

    def use(self, digests: Iterable[str]) -> None:
        """Pin ``digests`` for one more program."""
        self._users.update(set(digests))

    def release(self, digests: Iterable[str]) -> None:
        """Unpin them again, and forget the least recently used unpinned ones beyond the limit."""
        self._users.subtract(set(digests))
        self._users = +self._users
        self.trim()

    def trim(self) -> None:
        """Forget unpinned tensors, oldest first, until what is held fits."""
        limit_bytes = self.pinned_bytes + RETAINED_BYTES if self._limit_bytes is None else self._limit_bytes
        excess = self.num_bytes - limit_bytes
        for digest in [d for d in self._tensors if d not in self._users]:
            if excess <= 0:
                return
            tensor = self._tensors.pop(digest)
            if self._packer is not None:
                self._packer.forget(digest)
            excess -= tensor.numel() * tensor.element_size()
