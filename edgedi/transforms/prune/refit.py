"""A narrower network's weights fitted anew, layer by layer in the order they run, to what the original's layers make.

Each layer is fitted on what the *narrower* network gives it, so that errors of earlier layers are made up for and do
not pile up (as in He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", 2017). As there, a
layer whose output is added to a shortcut is fitted to what is then missing of the original's sum, errors of the
shortcut included. The fit is the one nearest to the weights that are there: ridge regression of the difference, in
float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgedi.transforms.data import Batch
from edgedi.transforms.prune.cut import Narrow, layers_of
from edgedi.transforms.prune.sums import Shortcut, shortcuts_of
from edgedi.transforms.prune.watch import Call, Watch
from edgedi.transforms.store import NO_SLOT, Slot, digest_of_model

LEAST_SAMPLES, SAMPLES_PER_COLUMN = 16384, 8
"""Fitted to eight samples for each column, a layer errs by a seventh more than it must on others; to three, by half."""
MOST_NUMBERS, LEAST_PER_COLUMN = 2**26, 2
"""All samples of one layer together take 256 MiB at most, but where that were fewer than two for each column."""
RIDGES = (1e-3, 1e-1, 1e1)
"""Added to the diagonal of the covariance, as a share of its mean."""
FEW = SAMPLES_PER_COLUMN
"""Samples for each column from which on the smallest ridge will do."""
MEMORY_BYTES = 2**30
"""Of the largest map of all inputs together: every layer is fitted within one run of all inputs at once."""


def together(batches: Sequence[Batch]) -> tuple[Any, ...]:
    """All inputs as one batch: those whose tensors have the first one's shapes."""
    leaves = [pytree.tree_flatten(batch.arguments) for batch in batches]
    shapes = [[leaf.shape[1:] for leaf in flat if isinstance(leaf, Tensor)] for flat, _ in leaves]
    alike = [flat for (flat, _), shape in zip(leaves, shapes, strict=True) if shape == shapes[0]]
    joined = [torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0] for parts in zip(*alike, strict=True)]
    return pytree.tree_unflatten(joined, leaves[0][1])


def samples_to_fit(groups: int, columns: int) -> int:
    """How many samples a layer of so many groups, each of so many columns, is fitted on."""
    most = max(MOST_NUMBERS // (groups * columns), LEAST_PER_COLUMN * columns)
    return min(max(LEAST_SAMPLES, SAMPLES_PER_COLUMN * columns), most)


class Teacher:
    """What the original's layers make of the inputs, at the positions that a fit looks at; kept for many fits.

    Of a layer whose output is added to a shortcut: what the sum is.
    """

    @torch.no_grad()
    def __init__(self, original: nn.Module, arguments: tuple[Any, ...], seed: int, slot: Slot = NO_SLOT) -> None:
        """``slot`` keeps the layers of a fit under way."""
        self.original, self.seed, self._slot = original, seed, slot
        self.outputs: dict[str, Tensor] = {}
        self.samples: dict[str, int] = {}
        arguments = _fewer(original, arguments)
        self._shortcuts = shortcuts_of(original, arguments)
        aside = _Aside(self._shortcuts)

        def keep(call: Call) -> Tensor:
            output = call.run()
            self.samples[call.name] = samples_to_fit(call.groups, call.weight[0].numel())
            picks = call.picks(seed, self.samples[call.name])
            self.outputs[call.name] = call.made(output, picks) + aside.at(call, picks)
            aside.put(call, output)
            return output

        with Watch(original, layers_of(original), keep):
            original(*arguments)
        self.arguments = arguments

    @torch.no_grad()
    def fit(self, small: nn.Module, edit: Narrow) -> None:
        """Change the weights of ``small``, which ``edit`` made of the original, in place."""
        gone = {cut.layer: cut.outputs for cut in edit.cuts}
        whose, known = digest_of_model(small) if self._slot.keeps else "", self._slot.load() or {}
        before = iter(known["fitted"] if known.get("model") == whose else ())
        fitted: list[tuple[Tensor, Tensor | None]] = []
        aside = _Aside(self._shortcuts)

        def see(call: Call) -> Tensor:
            picks = call.picks(self.seed, self.samples[call.name])
            found, shortcut = next(before, None), aside.at(call, picks)
            if found is not None:
                _set(call, *found)
            else:
                wanted, lost = self.outputs[call.name], set(gone.get(call.name, ()))
                kept = [i for i in range(wanted.shape[1]) if i not in lost]
                _fit(call, call.columns(picks), wanted[:, kept] - shortcut)
            if self._slot.keeps:
                fitted.append((call.weight.clone(), None if call.bias is None else call.bias.clone()))
            if self._slot.due:
                self._slot.save({"model": whose, "fitted": fitted})
            output = call.run()
            aside.put(call, output)
            return output

        with Watch(small, self.outputs, see):
            small(*self.arguments)


class _Aside:
    """Shortcuts of one run, kept from where they are seen until the layer runs that makes what they are added to."""

    def __init__(self, shortcuts: Mapping[str, Shortcut]) -> None:
        self._shortcuts, self._waiting = shortcuts, Counter(shortcuts.values())
        self._kept: dict[Shortcut, Tensor] = {}

    def at(self, call: Call, picks: Tensor) -> Tensor | float:
        """What is added to a layer's output, at its picked positions, [picked of all inputs, outputs]; 0 if nothing.

        In float32: half the digits would not do for a sum of which a part is looked for.
        """
        shortcut = self._shortcuts.get(call.name)
        if shortcut is None:
            return 0.0
        self._waiting[shortcut] -= 1
        if shortcut == Shortcut(call.name, True):
            return call.made(call.input, picks).float()
        tensor = self._kept.get(shortcut)
        if not self._waiting[shortcut]:
            self._kept.pop(shortcut, None)
        return 0.0 if tensor is None else call.made(tensor, picks).float()

    def put(self, call: Call, output: Tensor) -> None:
        """A layer has run."""
        for is_input, tensor in ((True, call.input), (False, output)):
            shortcut = Shortcut(call.name, is_input)
            if self._waiting[shortcut]:
                self._kept[shortcut] = tensor


def _fewer(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """As many inputs as fit into ``MEMORY_BYTES``."""
    largest = 1

    def see(call: Call) -> Tensor:
        nonlocal largest
        output = call.run()
        largest = max(largest, output[:1].numel() * output.element_size())
        return output

    def first(count: int) -> tuple[Any, ...]:
        return pytree.tree_map(lambda leaf: leaf[:count] if isinstance(leaf, Tensor) else leaf, arguments)

    with Watch(model, layers_of(model), see):
        model(*first(1))
    return first(max(16, MEMORY_BYTES // largest))


def _set(call: Call, weight: Tensor, bias: Tensor | None) -> None:
    """Weights as an earlier run fitted them."""
    call.weight.copy_(weight)
    if call.bias is not None and bias is not None:
        call.bias.copy_(bias)


def _fit(call: Call, columns: Tensor, wanted: Tensor) -> None:
    """Least squares of one layer: ``columns`` [samples, groups, columns] to ``wanted`` [samples, outputs]."""
    many = call.groups
    weight = call.weight.reshape(many, -1, columns.shape[2])
    x = columns.float()
    found = torch.einsum("sgk,gok->sgo", x, weight.float())
    if call.bias is not None:
        found += call.bias.float().reshape(many, -1)
    missing = wanted.float().reshape(len(x), many, -1) - found
    mean, shift = x.mean(0), missing.mean(0)
    if call.bias is not None:
        x, missing = x - mean, missing - shift
    change = _ridge(x.transpose(0, 1), missing.transpose(0, 1))
    if not bool(change.isfinite().all()):
        return
    call.weight.copy_((weight.double() + change.transpose(1, 2)).reshape(call.weight.shape))
    if call.bias is not None:
        lift = shift.double() - torch.einsum("gk,gko->go", mean.double(), change)
        call.bias.copy_(call.bias.double() + lift.flatten())


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """[groups, columns, outputs]: ``y`` [groups, samples, outputs] of ``x`` [groups, samples, columns], and small.

    Where samples are few, the ridge is the one of ``RIDGES`` that does best on the last quarter of the samples when
    fitted on the others; nothing is changed where that is best.
    """
    ridge = RIDGES[0]
    if x.shape[1] < FEW * x.shape[2]:
        known = x.shape[1] * 3 // 4
        solve = _solver(x[:, :known], y[:, :known])
        rest_x, rest_y = x[:, known:].double(), y[:, known:].double()
        found = [(float((rest_y - rest_x @ solve(ridge)).square().sum()), ridge) for ridge in RIDGES]
        error, ridge = min(found)
        if error >= float(rest_y.square().sum()):
            return torch.zeros(x.shape[0], x.shape[2], y.shape[2], dtype=torch.float64)
    return _solver(x, y)(ridge)


def _solver(x: Tensor, y: Tensor) -> Callable[[float], Tensor]:
    """The solution for any ridge; by samples or by columns, whichever are fewer."""
    by_samples = x.shape[2] > x.shape[1]
    gram = (x @ x.transpose(1, 2) if by_samples else x.transpose(1, 2) @ x).double()
    size = (x.square().sum((1, 2)).double() / x.shape[2])[:, None, None]
    eye = torch.eye(gram.shape[1], dtype=torch.float64)
    right = y.double() if by_samples else (x.transpose(1, 2) @ y).double()

    def solve(ridge: float) -> Tensor:
        solved = torch.cholesky_solve(right, torch.linalg.cholesky_ex(gram + (ridge * size + 1e-12) * eye).L)
        return x.transpose(1, 2).double() @ solved if by_samples else solved

    return solve
