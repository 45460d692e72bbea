"""Programs on another device than the CPU: weights, pieces and the tables of kernels lie where the program runs.

Torch's ``meta`` device has shapes and no numbers, and refuses to be mixed with the CPU: what runs on it holds nothing
that was left behind. Where CUDA is there, the numbers are compared as well.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgedi.partition.capture.capture import capture_model
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LinkProfile
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.program import Program
from edgedi.partition.planners.by_name import plan
from edgedi.runtime.execution.executor import ProgramRun
from edgedi.runtime.execution.loading import Shipment, digests_of, expected_pieces, load
from edgedi.runtime.execution.tensors import device_available, from_wire, inference, set_up_torch, to_wire
from edgedi.runtime.execution.weights import WeightStore, weight_digest
from edgedi.runtime.session.verify import relative_difference
from tests.runtime.networks import image, small


class Tables(nn.Module):
    """Operators whose kernels read tables of their own off numbers, which ``meta`` has not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(self.conv(x), 3, 2, 1, ceil_mode=True, count_include_pad=False)
        return F.interpolate(x, size=(23, 29), mode="bilinear") + F.interpolate(x, size=(23, 29), mode="nearest")


def pieces_of_worker_0(model: nn.Module, device: str) -> dict[str, torch.Tensor]:
    """What worker 0 of two sends home for noise, on ``device``, as it comes off the wire or, on ``meta``, before it."""
    capture = capture_model(model, (image(),))
    profile = DeviceProfile(name="d", fingerprint="d", layers={}, seconds_per_flop=1e-9, seconds_per_layer=1e-6)
    cluster = ClusterProfile(
        devices=(profile, profile), link=LinkProfile(latency_s=1e-6, bytes_per_s=1e10, message_cpu_s=1e-7)
    )
    programs = lower(plan(capture.graph, cluster, planner="equal"), capture.graph)
    shipment, store = Shipment(capture.weights, weight_digest), WeightStore(device=device)
    layers = shipment.describe(programs, 0)
    for digest in digests_of(layers):
        store.put(digest, shipment.tensors[digest])
    loaded = load(str(programs.programs[0]), layers, store, None, device=device)
    run, sent = ProgramRun(loaded), {}
    generator = torch.Generator().manual_seed(0)
    for (piece, source), (shape, _) in expected_pieces(Program.parse(str(loaded.program)), loaded.graph).items():
        run.deliver(piece, source, torch.rand(shape, generator=generator).to(device))

    def send(piece: object, tensor: torch.Tensor, target: int) -> None:
        assert tensor.device.type == device
        sent[f"{piece} to {target}"] = tensor if device == "meta" else from_wire(*to_wire(tensor), own=True)

    with inference():
        assert run.advance(send)
    return sent


def test_nothing_of_a_program_stays_on_the_cpu() -> None:
    own, elsewhere = pieces_of_worker_0(small(), "cpu"), pieces_of_worker_0(small(), "meta")
    assert own
    assert {name: tensor.shape for name, tensor in own.items()} == {name: t.shape for name, t in elsewhere.items()}


@pytest.mark.skipif(not device_available("cuda"), reason="torch finds no CUDA device here")
@pytest.mark.parametrize("model", [small(), Tables().eval()], ids=["small", "tables"])
def test_cuda_gives_the_cpus_numbers(model: nn.Module) -> None:
    set_up_torch(torch.get_num_threads(), "cuda")
    own, elsewhere = pieces_of_worker_0(model, "cpu"), pieces_of_worker_0(model, "cuda")
    for name, tensor in own.items():
        assert relative_difference(elsewhere[name], tensor) <= 2e-5, name


def test_float32_stays_float32() -> None:
    threads = torch.get_num_threads()
    set_up_torch(threads, "cuda")
    assert torch.get_num_threads() == threads
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
