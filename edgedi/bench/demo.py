"""The demo: three networks on two local workers, the answers compared, the times in one table.

The digits show that every answer is the same; VGG-16 and ResNet-50 show what a second worker is worth. Those two have
random weights: nothing is downloaded, and neither speed nor exactness asks what the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgedi.bench.contenders import SessionContender, tensors_of
from edgedi.bench.cores import start_workers, usable_cores
from edgedi.bench.digits import load_digits, train
from edgedi.bench.machine import this_machine
from edgedi.bench.measuring import interleaved
from edgedi.bench.networks import load_network
from edgedi.bench.photographs import load_photographs
from edgedi.bench.progress import Teller
from edgedi.bench.report import Machine, Result
from edgedi.runtime.session.distribute import distribute
from edgedi.runtime.session.verify import relative_difference

NETWORKS = {"VGG-16": "torchvision:vgg16", "ResNet-50": "torchvision:resnet50"}
NUM_WORKERS = 2
ROUNDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamePredictions:
    """What the workers say of the test digits, against what the network alone says.

    ``largest_difference`` is of the scores, as a share of the largest score.
    """

    num_images: int
    num_equal: int
    num_right: int
    num_split: int
    num_segments: int
    largest_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network of the table: its run on one worker and on all of them, and what the plan had predicted."""

    network: str
    one: Result
    all: Result
    predicted_s: float
    largest_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """All that the demo found."""

    digits: SamePredictions
    rows: tuple[Row, ...]
    seconds: float
    pinned: bool
    machine: Machine

    @property
    def same(self) -> bool:
        """Whether every answer was the model's own."""
        digits = self.digits.num_equal == self.digits.num_images
        return digits and all(row.one.within_tolerance and row.all.within_tolerance for row in self.rows)


def run_demo(teller: Teller, *, rounds: int = ROUNDS) -> Demo:
    """Run all of it on ``NUM_WORKERS`` local workers of one thread. ``ValueError`` names what is not installed."""
    machine = this_machine()
    networks = {title: load_network(name) for title, name in NETWORKS.items()}
    photographs = load_photographs()
    teller.say(f"starting {NUM_WORKERS} local workers, one thread each")
    workers = start_workers(NUM_WORKERS, threads=1)
    try:
        digits = compare_digits(workers.addresses, teller)
        rows = tuple(
            _race(title, network, list(photographs.values()), workers.addresses, rounds, teller)
            for title, network in networks.items()
        )
    finally:
        workers.stop()
    return Demo(
        digits=digits, rows=rows, seconds=teller.elapsed_s, pinned=len(usable_cores()) >= NUM_WORKERS, machine=machine
    )


def compare_digits(addresses: Sequence[str], teller: Teller) -> SamePredictions:
    """Train on digits, split over the workers, and let both predict every test image."""
    digits = load_digits()
    with _one_thread():
        network = train(digits, teller.say)
    images = digits.test_images.split(1)
    # "equal" splits whatever it costs: a map of 8 x 8 is too small for a second worker to pay, and "oodp" knows.
    teller.say("splitting the trained network evenly over the workers")
    with distribute(network, images[0], addresses, planner="equal", progress=_quiet) as session:
        teller.say(f"predicting {len(images)} test images, image by image")
        scores = torch.cat(list(session.stream(images)))
        segments = session.plan.segments
    with torch.inference_mode(), _one_thread():
        own = torch.cat([network(image) for image in images])
    return SamePredictions(
        num_images=len(images),
        num_equal=int((scores.argmax(1) == own.argmax(1)).sum()),
        num_right=int((scores.argmax(1) == digits.test_labels).sum()),
        num_split=sum(segment.on is None for segment in segments),
        num_segments=len(segments),
        largest_difference=relative_difference(scores, own),
    )


def _race(
    title: str, network: nn.Module, images: Sequence[Tensor], addresses: Sequence[str], rounds: int, teller: Teller
) -> Row:
    inputs = [(image,) for image in images]
    with torch.inference_mode():
        own = [tensors_of(network(*args)) for args in inputs]
    with (
        distribute(network, inputs[0], addresses, planner="single", progress=teller.about(title)) as alone,
        distribute(network, inputs[0], addresses, progress=teller.about(title)) as together,
    ):
        contenders = [SessionContender("one worker", alone, inputs), SessionContender("all workers", together, inputs)]
        rounds_told = teller.rounds(rounds, f"{title} on one worker and on {len(addresses)}")
        one, both = interleaved(contenders, own, rounds_told)
        for contender in contenders:
            contender.require_workers_answered()
        predicted_s = together.plan.predicted_s
    return Row(
        network=title, one=one, all=both, predicted_s=predicted_s,
        largest_difference=max(one.difference, both.difference),
    )  # fmt: skip


@contextmanager
def _one_thread() -> Iterator[None]:
    """Operators on tiny images are slower on more threads, and on a busy machine many times so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quiet(_: Any) -> None:
    return None
