"""A network in a folder, read without running anything that the files say.

All files are written beside the folder before the first is put there, so that an error leaves it as it was. A kill
while they are put there leaves some of them: ``load`` then gives the network of before or the new one, or refuses where
program and weights do not belong together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from torch import Tensor, nn

from edgedi.errors import CompactionError
from edgedi.transforms.arguments import arguments_of, check_model
from edgedi.transforms.measure import answer_of, difference
from edgedi.transforms.report import Compaction
from edgedi.transforms.saved.as_json import compaction_json
from edgedi.transforms.saved.exporting import export, kind_of
from edgedi.transforms.saved.network import SavedNetwork
from edgedi.transforms.saved.page import compaction_page
from edgedi.transforms.saved.program import Program, parsed, written

PROGRAM, WEIGHTS, EXPORTED, REPORT, PAGE = (
    "program.json", "weights.safetensors", "model.pt2", "report.json", "report.html",
)  # fmt: skip
TOLERANCE = 1e-5
"""How far the saved network's answer may be from the model's on the example, relative to its largest value."""

Folder = str | os.PathLike[str]


def save(model: nn.Module, folder: Folder, example_inputs: Any, *, overwrite: bool = False) -> None:
    """Write ``model`` to ``folder``, from where ``edgedi.load`` brings it back without the model's own code.

    ``example_inputs``: a tensor, or a tuple of arguments; the saved network takes inputs of these shapes only, the
    batch among them. The folder gets ``program.json`` and ``weights.safetensors``, which ``load`` reads, ``model.pt2``
    for others (``torch.export.save``), and of a model that ``compact`` gave ``report.json`` and ``report.html``. It is
    made if need be; ``overwrite`` replaces these files where it holds something.

    Raises ``ValueError`` for a model in training mode or not on the CPU, and for a folder that is not empty;
    ``CompactionError`` for a model that ``torch.export`` does not take or that has operators of other libraries.
    """
    check_model(model)
    arguments = arguments_of(example_inputs)
    check_free(folder, overwrite=overwrite)
    made = export(model, arguments)
    again = SavedNetwork(made.program, tensors_of(made.weights))
    off = difference(answer_of(again, arguments), answer_of(model, arguments))
    if not off <= TOLERANCE:
        raise CompactionError(
            f"{type(model).__name__} as it would be saved differs by {off:.1e} of the largest value; nothing was "
            "written. Does its forward draw random numbers?"
        )
    with _draft(Path(folder)) as draft:
        (draft / PROGRAM).write_text(written(made.program), encoding="utf-8")
        (draft / WEIGHTS).write_bytes(made.weights)
        torch.export.save(made.exported, draft / EXPORTED)
        report = getattr(model, "compaction", None)
        if isinstance(report, Compaction):
            text = compaction_json(report)
            (draft / REPORT).write_text(text + "\n", encoding="utf-8")
            (draft / PAGE).write_text(compaction_page(report, type(model).__name__, text), encoding="utf-8")


def load(folder: Folder) -> nn.Module:
    """The network that ``edgedi.save`` or ``edgedi-compact`` wrote to ``folder``, in evaluation mode, on the CPU.

    It is called like the one that was saved, gives the same values, takes inputs of the same shapes only, and
    ``distribute`` takes it. Nothing is unpickled and no code is read: the files name operators of a fixed kind and hold
    numbers. Raises ``ValueError`` that names the file and what to do: where a file is missing, damaged, of something
    else, or where the weights are not those that belong to the program.
    """
    place = Path(folder)
    if not place.is_dir():
        what = "is a file" if place.exists() else "is not there"
        raise ValueError(f"{place} {what}; give the folder that edgedi.save or edgedi-compact wrote")
    path, weights_path = place / PROGRAM, place / WEIGHTS
    with _named(path):
        program = parsed(_bytes(path).decode("utf-8"))
    with _named(weights_path):
        weights = _weights(_bytes(weights_path), program)
    with _named(path):
        return SavedNetwork(program, weights)


def check_free(folder: Folder, *, overwrite: bool) -> None:
    """``ValueError`` where ``folder`` is a file, or holds something that may not be overwritten."""
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place} is a file; give a folder")
    if not overwrite and place.is_dir() and any(place.iterdir()):
        raise ValueError(f"{place} is not empty; give another folder, or overwrite=True (--force)")


def _weights(content: bytes, program: Program) -> dict[str, Tensor]:
    if hashlib.sha256(content).hexdigest() != program.weights_sha256:
        raise ValueError(f"it does not hold the weights that {PROGRAM} was saved with")
    found = tensors_of(content)
    if {name: kind_of(tensor) for name, tensor in found.items()} != program.weights:
        raise ValueError(f"its names or shapes are not those that {PROGRAM} names")
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError("it is not there") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError, SafetensorError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(
            f"{path} cannot be loaded: {reason}. It is missing, damaged, or of something else: copy the whole folder "
            "again, or save the network again"
        ) from error


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, whose files go there when all of them are written."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        yield draft
        for stale in (REPORT, PAGE):
            (folder / stale).unlink(missing_ok=True)
        for path in sorted(draft.iterdir()):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
