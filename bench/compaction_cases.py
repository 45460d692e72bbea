"""The rows of ``bench.compaction``: networks, what ``compact`` is given, what they are scored by, and their bars.

Nothing that is scored at the end was seen before. Networks that are not trained are compacted twice: with one half of
the images, unlabelled, and scored on the other; then the other way round. Networks for CIFAR-10 learn
from 45,000 training images, are chosen by 5,000 others, and are scored on the test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.average_precision import mean_average_precision
from bench.pretrained import (
    Detector,
    cifar,
    detections,
    imagenet,
    mobilenet,
    normalised,
    plus_minus_one,
    resnet50,
    resnet_cifar,
    street_scenes,
    true_boxes,
)
from bench.vgg_cifar import Images, augmented, training_images
from bench.vgg_cifar import network as vgg_cifar
from edgedi.transforms.score import Score

Judge = Callable[[nn.Module], Score]
HALVES = 2
LATE = 1.1
"""By so much a budget may be exceeded."""
SURE = 0.05
"""Score from which on a box that a detector finds is one of its answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A network with all that a run of ``compact`` needs, and what it is scored by at the very end."""

    model: nn.Module
    example: Tensor
    judge: Judge
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network of the bench and its bar: the least cut, the most that the score may fall, of all runs together, and
    the seconds of two cores in which each run is to be there."""

    name: str
    set_up: Callable[[Path, int], Setting]
    """Of the folder of real images and the number of the run: the half that is scored, or the seed."""
    least_cut: float
    most_fall: float
    most_s: float
    least_parameter_cut: float = 0.0
    trains: bool = False
    """Then each run has a seed of its own, and a control; else each has one half of the images to be scored by."""

    def numbers(self, first: int, count: int) -> Sequence[int]:
        """Of ``count`` runs from ``first`` on, those that there are."""
        return range(first, first + count if self.trains else min(first + count, HALVES))


# --- scores -----------------------------------------------------------------------------------------------------------


def top_1(inputs: Sequence[Tensor], labels: Tensor) -> Judge:
    """Accuracy over batches of inputs."""

    def judge(model: nn.Module) -> Score:
        with torch.no_grad():
            found = torch.cat([model(x).argmax(1) for x in inputs])
        return Score(value=float((found == labels).double().mean()), count=len(labels))

    return judge


def precision_of(heads: list[dict[str, str]]) -> Callable[[nn.Module, Any], float]:
    """``metric(model, data)``: mAP@0.5 over (images, true boxes) batches."""

    def metric(model: nn.Module, data: Any) -> float:
        found = [one for x, _ in data for one in detections(model, x, heads, 0.01)]
        return mean_average_precision(found, [boxes for _, true in data for boxes in true])

    return metric


# --- without training -------------------------------------------------------------------------------------------------


def halves(count: int, scored: int) -> tuple[slice, slice]:
    """Every other of ``count``, beginning with ``scored``, 0 or 1, to be scored; and the rest to calibrate with."""
    return slice(scored, count, HALVES), slice(1 - scored, count, HALVES)


def on_imagenet(
    build: Callable[[Path], nn.Module], prepare: Callable[[np.ndarray], Tensor], macs: float | None = None
) -> Callable[[Path, int], Setting]:
    """Cut to the share ``macs``, else as far as answers stay; one half of the images calibrates, the other scores."""

    def set_up(data: Path, number: int) -> Setting:
        pixels, labels = imagenet(data)
        scored, rest = halves(len(labels), number)
        x, calibration = prepare(pixels[scored]), prepare(pixels[rest])
        return Setting(
            model=build(data), example=calibration[:1], judge=top_1(x.split(25), labels[scored]),
            options={"calibration": calibration, "target": None if macs is None else {"macs": macs}},
        )  # fmt: skip

    return set_up


def detector(data: Path, number: int) -> Setting:
    """Fitted on every other image of one half of COCO's, chosen on those between, scored on the other half.

    Chosen by how many of the original's own boxes are still found there: true boxes are few of each class, and on 64
    images one more or less hides what was lost.
    """
    x, true = street_scenes(data, 128), true_boxes(data, 128)
    model = Detector(data)
    metric = precision_of(model.heads)
    scored, rest = halves(len(x), number)
    fitted, kept = x[rest][::2].contiguous(), x[rest][1::2].contiguous()
    own = [(boxes, classes) for boxes, _, classes in detections(model, kept, model.heads, SURE)]
    last = [(x[scored].contiguous(), true[scored])]
    return Setting(
        model=model, example=fitted[:1], judge=lambda network: Score(value=metric(network, last)),
        options={"calibration": fitted, "validate": [(kept, own)], "metric": metric, "tolerance": 0.005},
    )  # fmt: skip


# --- with training ----------------------------------------------------------------------------------------------------


class Augmented:
    """Batches of training images, mirrored and shifted by chance; another order in each pass."""

    def __init__(self, images: Images, batch: int = 128) -> None:
        self._images, self._batch = images, batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        for rows in torch.randperm(len(self._images.labels), generator=generator).split(self._batch):
            if len(rows) == self._batch:
                yield augmented(self._images.pixels[rows], generator), self._images.labels[rows]


def on_cifar(build: Callable[[Path], nn.Module], **options: Any) -> Callable[[Path, int], Setting]:
    """A network of CIFAR-10's size that learns from the JPEG training images and their labels, as its control does.

    By labels, too: the pretrained networks have not seen JPEG's damage, so the original gains from more training, and a
    compact network that learnt from the original alone could not keep up with a control that may gain.
    """

    def set_up(data: Path, number: int) -> Setting:
        learnt, held = training_images(data)
        x, labels = cifar(data)
        return Setting(
            model=build(data), example=learnt.pixels[:1], judge=top_1(x.split(500), labels),
            options={
                "calibration": learnt.pixels[:512], "train": Augmented(learnt),
                "validate": list(zip(held.pixels.split(500), held.labels.split(500), strict=True)),
                "loss": nn.functional.cross_entropy, **options,
            },
        )  # fmt: skip

    return set_up


def resnet_of(depth: int) -> Callable[[Path], nn.Module]:
    """ResNet-20 or ResNet-56."""
    return lambda data: resnet_cifar(data, depth)


def trained_vgg(data: Path) -> nn.Module:
    """What ``bench.vgg_cifar --out vgg`` has trained."""
    path = Path("vgg") / "model.pt"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: train it first, with python -m bench.vgg_cifar --out vgg")
    made = vgg_cifar()
    made.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return made.eval()


SCAR = ("simplify", "scar", "recover")
CASES = (
    Case(
        name="resnet50-imagenet",
        set_up=on_imagenet(resnet50, normalised, 0.9),
        least_cut=0.10,
        most_fall=0.005,
        most_s=600,
    ),
    Case(
        name="mobilenetv2-imagenet",
        set_up=on_imagenet(mobilenet, plus_minus_one),
        least_cut=0.0,  # the bar asks for whatever holds the score, and for the figure
        most_fall=0.005,
        most_s=600,
    ),
    Case(name="yolo-coco", set_up=detector, least_cut=0.0, most_fall=0.005, most_s=600),
    Case(
        name="resnet20-cifar",
        set_up=on_cifar(resnet_of(20), target={"macs": 0.65}, budget_s=3600),
        least_cut=0.35,
        most_fall=0.0,
        most_s=3600 * LATE,
        trains=True,
    ),
    Case(
        name="resnet56-cifar",
        set_up=on_cifar(resnet_of(56), target={"macs": 0.5}, budget_s=7200),
        least_cut=0.50,
        most_fall=0.0,
        most_s=7200 * LATE,
        trains=True,
    ),
    Case(
        name="vgg16-cifar-scar",
        set_up=on_cifar(trained_vgg, steps=SCAR, target={"macs": 0.2, "parameters": 0.1}, budget_s=7200),
        least_cut=0.80,
        least_parameter_cut=0.90,
        most_fall=0.0,
        most_s=7200 * LATE,
        trains=True,
    ),
)
