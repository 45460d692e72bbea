"""Winograd's convolution (edgedi/runtime/kernels/winograd.py) against oneDNN's direct one, layer by layer.

    OMP_NUM_THREADS=1 python -m bench.winograd [--chunks 1,4,16]

For 3 x 3 layers of VGG-16 and ResNet-50, whole and a quarter of their rows: milliseconds of both, one thread, the least
of some runs in turn, and the largest error relative to the largest value of the answer in float64 (ReLU of normal noise
in, weights of He's variance, so that errors compare), also of the points that are usual for F(4 x 4, 3 x 3).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgedi.partition.capture.capture import capture_model
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.program import Piece, Run
from edgedi.runtime.kernels import fused, winograd
from edgedi.runtime.kernels.prepare import Kernel, task_of
from edgedi.runtime.kernels.trials import OTHERS_BYTES, come_from_others

LAYERS = (
    (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 512, 28), (512, 512, 28),
    (512, 512, 14), (64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7),
)  # fmt: skip
"""Input channels, output channels, height and width."""
USUAL = (0.0, 1.0, -1.0, 2.0, -2.0)
REPEATS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chunks = arguments.chunks or [None]
    heads = "".join(f"{chunk / 1e6:>8g} MB" if chunk is not None else f"{'Winograd':>11}" for chunk in chunks)
    print(f"{'layer':<24}{'direct ms':>10}{heads}  {'error':>8}{'here':>9}{'usual points':>14}")
    with torch.inference_mode():
        for inputs, outputs, size in LAYERS:
            for rows in (size, -(-size // 4)):
                _row(inputs, outputs, rows, size, chunks)
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--chunks", type=_bytes, default=None, metavar="MB,...", help="tiles at once (default: as programs have them)"
    )
    return made


def _bytes(text: str) -> list[int]:
    try:
        return [int(1_000_000 * float(word)) for word in text.split(",")]
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of megabytes such as 1,4,16") from None


def _row(inputs: int, outputs: int, rows: int, size: int, chunks: Sequence[int | None]) -> None:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1).eval()
    nn.init.kaiming_normal_(conv.weight)
    x = torch.randn(1, inputs, size, size).relu_().to(memory_format=torch.channels_last)
    exact = conv.double()(x.double())[:, :, :rows]
    conv.float()
    captured = capture_model(conv, x)
    (layer,) = captured.graph.layers
    piece = Piece(layer.name) if rows == size else Piece(layer.name, 2, Interval(0, rows))
    weights = {role: captured.weights[name] for role, name in layer.weights.items()}
    task = task_of(Run(piece, (Piece(layer.inputs[0]),)), captured.graph, weights)
    held = x if rows == size else x[:, :, : rows + 1].contiguous(memory_format=torch.channels_last)
    direct = fused.make(task, fused.Packer())
    assert direct is not None, "this torch has no fused operators"
    kernels = [direct, *(winograd.always(task, fused.Packer(), chunk_bytes=chunk) for chunk in chunks)]
    direct_s, *winograd_s = _least(kernels, held)
    errors = [_error(kernel(held), exact) for kernel in kernels[:2]]
    usual = _error(_usual(conv, x)[:, :, :rows], exact)
    name = f"{inputs:>3} -> {outputs:<3} {rows:>3} x {size}"
    times = "".join(f"{1e3 * seconds:>11.2f}" for seconds in winograd_s)
    print(f"{name:<24}{1e3 * direct_s:>10.2f}{times}  {errors[0]:>8.1e}{errors[1]:>9.1e}{usual:>14.1e}", flush=True)


def _least(kernels: Sequence[Kernel], x: Tensor) -> list[float]:
    others = torch.ones(OTHERS_BYTES // 4)
    rounds = [[_seconds(kernel, x, others) for kernel in kernels] for _ in range(1 + REPEATS)]
    return [min(each) for each in zip(*rounds[1:], strict=True)]


def _seconds(kernel: Kernel, x: Tensor, others: Tensor) -> float:
    """With the caches as a request has them, and as trials find them."""
    come_from_others(others, [x])
    started_s = time.perf_counter()
    kernel(x)
    return time.perf_counter() - started_s


def _usual(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """By the usual points and plain tensor operations: for its error only."""
    of_tile, of_weight, outputs = winograd.toom_cook(USUAL)
    reach, tile = winograd.REACH, winograd.TILE
    points = torch.einsum("ij,ocjk,lk->iloc", of_weight, conv.weight.double(), of_weight).float()
    size = x.shape[2]
    tiles = -(-size // tile)
    padded = nn.functional.pad(x, (1, tiles * tile + 1 - size) * 2)
    windows = padded[0].unfold(1, reach, tile).unfold(2, reach, tile)
    found = torch.einsum("ij,ctujk,lk->ilctu", of_tile.float(), windows, of_tile.float())
    products = torch.einsum("iloc,ilctu->ilotu", points, found)
    made = torch.einsum("ij,jlotu,kl->otiuk", outputs.float(), products, outputs.float())
    whole = made.reshape(1, -1, tiles * tile, tiles * tile)[..., :size, :size]
    assert conv.bias is not None
    return whole + conv.bias.view(1, -1, 1, 1)


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


if __name__ == "__main__":
    raise SystemExit(main())
