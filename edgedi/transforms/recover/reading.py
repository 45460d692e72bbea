"""Training batches without end: the same for the same seed, wherever one begins to read."""

from __future__ import annotations

from edgedi.transforms.data import Batch, Data
from edgedi.transforms.numbers import seed_of


class Reader:
    """Epoch after epoch of ``data``, each in an order of its own."""

    def __init__(self, data: Data, seed: int, *, epoch: int = 0, batch: int = 0) -> None:
        """``epoch`` and ``batch``: where to go on, as ``place`` was."""
        self._data, self._seed = data, seed
        self._start(epoch)
        self.some(batch)

    @property
    def place(self) -> dict[str, int]:
        """Epochs done, and batches of the next one."""
        return {"epoch": self._epoch, "batch": self._batch}

    def next(self) -> Batch:
        """One batch."""
        found = next(self._batches, None)
        if found is None:
            self._start(self._epoch + 1)
            return self.next()
        self._batch += 1
        return found

    def some(self, count: int) -> list[Batch]:
        """The next ``count`` batches."""
        return [self.next() for _ in range(count)]

    def _start(self, epoch: int) -> None:
        self._epoch, self._batch = epoch, 0
        self._batches = self._data.epoch(seed_of(self._seed, "epoch", epoch))
