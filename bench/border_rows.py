"""What border rows first give: one plan, run so and with every layer made at once, in turn on an emulated testbed.

    .venv/bin/python -m bench.border_rows --network resnet50 --testbed pi4x2@50M [--rounds 15] [--least-gain 0]

The cost model says where parts pay (``edgedi/partition/cost/overlap.py``); a plan without such a place is said to be
so, and nothing is measured. With ``--least-gain 0`` parts are made wherever anything at all is predicted to be gained.
Each round asks both sessions for one answer, timed in the devices' time; what is printed are medians and quartiles, the
median of the ratios within each round with its 95 % interval, and what was predicted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

from edgedi import ClusterProfile, Session, distribute
from edgedi.bench.numbers import spread, times_as_fast
from edgedi.bench.testbed.specs import find_spec
from edgedi.bench.testbed.start import Testbed
from edgedi.partition.cost import overlap, settle
from edgedi.partition.cost.cost import CostModel
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import Plan
from edgedi.partition.plan.program import ProgramSet, Run
from edgedi.runtime.coordinator import deployment

WARM = 2


def made_at_once(model: CostModel, plan: Plan, objective: str = "latency") -> ProgramSet:
    """In the place of ``lower_for`` and ``lower_hiding``."""
    return lower(plan, model.graph)


@contextmanager
def without_borders_first() -> Iterator[None]:
    """Sessions that are opened within it make every layer at once; their plans are the same."""
    with patch.object(deployment, "lower_for", made_at_once):
        yield


def plain_seconds(session: Session, profile: ClusterProfile) -> float:
    """What the session's plan is predicted to take with every layer made at once."""
    with patch.object(settle, "lower_hiding", made_at_once):
        return settle.settled(CostModel(session.programs.graph, profile), session.plan).predicted_s


def parts_of(programs: ProgramSet) -> int:
    """How many layers are made in parts, on the worker that has most of them."""
    runs = [[i.piece.tensor for i in p.instructions if isinstance(i, Run)] for p in programs.programs.values()]
    return max(sum(names.count(name) > 1 for name in set(names)) for names in runs)


def compare(model: nn.Module, x: Tensor, testbed: Testbed, rounds: int) -> None:
    """Print the table."""

    def opened(profile: ClusterProfile | None) -> Session:
        return distribute(
            model, x, testbed.addresses, key=testbed.key, local=True, rebalance=False, profile=profile, timeout_s=600
        )

    with opened(None) as measuring:
        profile = measuring.profile
    with ExitStack() as stack:
        first = stack.enter_context(opened(profile))
        if not parts_of(first.programs):
            print("no layer of this plan is made in parts: it would cost more than it hides")
            return
        with without_borders_first():
            whole = stack.enter_context(opened(profile))
        if first.plan.digest != whole.plan.digest:
            raise RuntimeError("the two sessions have different plans: nothing is compared here")
        seconds: dict[str, list[float]] = {"borders first": [], "at once": []}
        sessions = dict(zip(seconds, (first, whole), strict=True))
        for number in range(WARM + rounds):
            for name, session in sessions.items():
                started = testbed.clock()
                session(x)
                if number >= WARM:
                    seconds[name].append(testbed.clock() - started)
        predicted = {"borders first": first.plan.predicted_s, "at once": plain_seconds(whole, profile)}
        for name, taken in seconds.items():
            found = spread(taken)
            middle = f"[{1e3 * found.low_s:.1f}, {1e3 * found.high_s:.1f}]"
            print(f"{name:14} {1e3 * found.median_s:7.1f} ms  {middle}  predicted {1e3 * predicted[name]:.1f}")
        ratio = times_as_fast(seconds["borders first"], seconds["at once"])
        print(
            f"{parts_of(first.programs)} layers in parts: {ratio.median:.3f} times as fast "
            f"[{ratio.low:.3f}, {ratio.high:.3f}], predicted {predicted['at once'] / predicted['borders first']:.3f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.border_rows", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--network", default="resnet50", help="a network of torchvision (default: resnet50)")
    parser.add_argument("--size", type=int, default=224, help="rows and columns of the input (default: 224)")
    parser.add_argument(
        "--testbed", default="pi4x2@50M", metavar="SPEC", help="as in edgedi-bench (default: pi4x2@50M)"
    )
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument(
        "--least-gain", type=float, default=overlap.LEAST_GAIN, metavar="SHARE",
        help="of a message's way that parts must be predicted to gain (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if not arguments.least_gain >= 0:
        parser.error(f"--least-gain {arguments.least_gain}: a share, 0 or more")
    try:
        spec = find_spec(arguments.testbed)
    except (ValueError, OSError) as error:
        parser.error(f"--testbed {arguments.testbed}: {error}")
    model = getattr(importlib.import_module("torchvision.models"), arguments.network)(weights=None).eval()
    with closing(Testbed(spec, lambda line: print(line, file=sys.stderr))) as testbed:
        print(f"{arguments.network} {arguments.size}; least gain {arguments.least_gain}; {testbed}", flush=True)
        with torch.inference_mode(), patch.object(overlap, "LEAST_GAIN", arguments.least_gain):
            compare(model, torch.rand(1, 3, arguments.size, arguments.size), testbed, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
