"""Checkpoints: what a long computation has so far, as plain values in files of a folder.

Files are written beside their place and then put there at once, so that a kill at any time leaves the old or the new
one. They are read as tensors and plain values only, never as code.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

VERSION = 4
EVERY_S = 45.0
"""A computation under way is written this often: at most a minute of work is lost."""

_KIND = "edgedi compaction"


class Slot:
    """One file of a checkpoint."""

    def __init__(self, path: Path | None, about: Mapping[str, Any], used_s: Callable[[], float]) -> None:
        """``path``: ``None`` keeps nothing. ``about``: whose it is; a file that says something else is refused."""
        self._path, self._about, self._used_s = path, dict(about), used_s
        self._saved_s = used_s()

    @property
    def keeps(self) -> bool:
        """Whether what is saved is kept anywhere."""
        return self._path is not None

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.keeps and self._used_s() - self._saved_s >= EVERY_S

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep ``state``, plain values and tensors, in place of what was there."""
        if self._path is None:
            return
        draft = self._path.with_name(self._path.name + ".draft")
        with draft.open("wb") as file:
            torch.save({**self._about, "used_s": self._used_s(), "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        self._saved_s = self._used_s()

    def load(self) -> dict[str, Any] | None:
        """What was saved last; ``None`` where nothing was. ``ValueError`` where it is damaged or someone else's."""
        found = self.read()
        return None if found is None else found["state"]

    def read(self) -> dict[str, Any] | None:
        """As ``load``, with what is said about it."""
        if self._path is None or not self._path.exists():
            return None
        try:
            found = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds; each means the same here
            raise ValueError(f"{self._path} is damaged ({type(error).__name__}); {_INSTEAD}") from error
        if not isinstance(found, dict) or found.get("kind") != _KIND or not isinstance(found.get("state"), dict):
            raise ValueError(f"{self._path} is no checkpoint of compact; {_INSTEAD}")
        for what, own in self._about.items():
            if found.get(what) != own:
                raise ValueError(f"{self._path} is of {_OTHER[what]}; {_INSTEAD}")
        return found


_INSTEAD = "remove the folder to start anew, or give another as checkpoint=..."
_OTHER = {
    "kind": "another program",
    "version": "another version of edgedi",
    "model": "another model: names, shapes or values of its weights differ",
    "settings": "a run with other arguments",
}


class Store:
    """A folder of slots, all about one compaction."""

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        model: str = "",
        settings: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``folder`` is made; ``None`` keeps nothing. ``model`` and ``settings``: digests of whose it is.

        ``ValueError`` where the folder cannot be one, or holds what is damaged or someone else's.
        """
        self._folder, self._clock, self._prefix = None if folder is None else Path(folder), clock, ""
        self._about = {"kind": _KIND, "version": VERSION, "model": model, "settings": settings}
        self.earlier_s, self._opened_s = 0.0, clock()
        """Seconds of the runs before this one, as far as they were saved."""
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"checkpoint={str(folder)!r} cannot be a folder: {error}") from error
            there = [Slot(path, self._about, lambda: 0.0).read() for path in self._folder.glob("*.pt")]
            self.earlier_s = max((found["used_s"] for found in there if found), default=0.0)

    def used_s(self) -> float:
        """Seconds of this run and of those before it, as far as they were saved."""
        return self.earlier_s + self._clock() - self._opened_s

    def slot(self, name: str) -> Slot:
        """The file of that name."""
        path = None if self._folder is None else self._folder / f"{self._prefix}{name}.pt"
        return Slot(path, self._about, self.used_s)

    def within(self, name: str) -> Store:
        """The same folder, for a part of the work: its slots are apart from all others."""
        part = copy.copy(self)
        part._prefix = f"{self._prefix}{name}-"
        return part

    def clear(self) -> None:
        """Forget the slots of this part."""
        if self._folder is not None:
            for path in self._folder.glob(f"{self._prefix}*.pt"):
                path.unlink()


NOWHERE = Store(None)
"""Keeps nothing."""

NO_SLOT = NOWHERE.slot("")


def digest_of_model(model: nn.Module) -> str:
    """Of its class, and of the names, kinds, shapes and values of its weights."""
    sha = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if isinstance(tensor, torch.Tensor):
            _add(sha, name, tensor)
    return sha.hexdigest()


def digest_of(value: Any) -> str:
    """Of plain values, tensors, modules and callables in lists, tuples and dicts; a callable counts by its name."""
    sha = hashlib.sha256()
    leaves, structure = pytree.tree_flatten(value)
    sha.update(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            _add(sha, "", leaf)
        elif isinstance(leaf, nn.Module):
            sha.update(digest_of_model(leaf).encode())
        else:
            named = getattr(leaf, "__qualname__", type(leaf).__qualname__) if callable(leaf) else repr(leaf)
            sha.update(named.encode() + b"\0")
    return sha.hexdigest()


def _add(sha: Any, name: str, tensor: torch.Tensor) -> None:
    sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
