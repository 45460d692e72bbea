"""What ``compact`` makes of pretrained networks on real images, against its bars.

    .venv/bin/python -m bench.compaction [--only WORD] [--seeds N] [--out bench/results/FOLDER]

Needs the real networks and images (CONTRIBUTING.md, EDGEDI_DATA). Nothing that is scored at the end was seen before:
networks for ImageNet are calibrated on COCO's images and scored on the sample; the detector is calibrated on ImageNet's
and chosen by one half of COCO's. Networks for CIFAR-10 learn from 45,000 training images, are chosen by 5,000 others,
and are scored on the test images. Their *control* is the original, trained as long by the same recipe on the same data.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.average_precision import mean_average_precision
from bench.pretrained import (
    Detector,
    cifar,
    data_folder,
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
from edgedi import compact, save
from edgedi.transforms.measure import measured
from edgedi.transforms.report import Size
from edgedi.transforms.score import Score

Judge = Callable[[nn.Module], Score]
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A network with all that a run of ``compact`` needs, and what it is scored by at the very end."""

    model: nn.Module
    example: Tensor
    judge: Judge
    options: Mapping[str, Any]
    trains: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: how it is set up, and its bar: the least cut of MACs, and the most that the score may fall."""

    name: str
    set_up: Callable[[Path], Setting]
    least_cut: float
    most_fall: float
    least_parameter_cut: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run. Cuts are shares of the original's; ``control`` is what the same training made of the original."""

    case: str
    seed: int
    parameters: tuple[int, int]
    macs: tuple[int, int]
    num_bytes: tuple[int, int]
    exact_macs: int
    before: Score
    after: Score
    control: Score | None
    seconds: float
    held: bool
    """Whether its bar was reached."""
    steps: str
    """The table of the compaction."""

    @property
    def cut(self) -> float:
        """Of the original's MACs."""
        return 1 - self.macs[1] / self.macs[0]


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


def scenes(data: Path, size: int, paths: Sequence[Path] | None = None) -> np.ndarray:
    """Two square crops of each of COCO's images, as bytes [number, size, size, 3]."""
    from PIL import Image

    crops = []
    for path in paths or sorted((data / "coco128" / "images").glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        for left, top in ((0, 0), (image.width - side, image.height - side)):
            crops.append(np.asarray(image.crop((left, top, left + side, top + side)).resize((size, size))))
    return np.stack(crops)


def on_imagenet(
    build: Callable[[Path], nn.Module], prepare: Callable[[np.ndarray], Tensor]
) -> Callable[[Path], Setting]:
    """Calibrated on COCO's images, scored on the sample of 500."""

    def set_up(data: Path) -> Setting:
        pixels, labels = imagenet(data)
        x = prepare(pixels)
        return Setting(
            model=build(data), example=x[:1], judge=top_1(x.split(25), labels),
            options={"calibration": prepare(scenes(data, 224))},
        )  # fmt: skip

    return set_up


def detector(data: Path) -> Setting:
    """Calibrated on ImageNet's images, chosen by 64 of COCO's, scored on the other 64."""
    model, x, true = Detector(data), street_scenes(data, 128), true_boxes(data, 128)
    metric = precision_of(model.heads)
    pixels, _ = imagenet(data)
    calibration = nn.functional.interpolate(
        torch.from_numpy(pixels[:256].transpose(0, 3, 1, 2).astype(np.float32) / 255), (320, 320), mode="bilinear"
    )
    chosen, scored = ([(x[part].contiguous(), true[part])] for part in (slice(0, None, 2), slice(1, None, 2)))
    return Setting(
        model=model, example=x[:1], judge=lambda network: Score(value=metric(network, scored)),
        options={"calibration": calibration, "validate": chosen, "metric": metric, "tolerance": 0.005},
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


def on_cifar(build: Callable[[Path], nn.Module], **options: Any) -> Callable[[Path], Setting]:
    """A network of CIFAR-10's size that learns from the JPEG training images and their labels, as its control does.

    By labels, too: the pretrained networks have not seen JPEG's damage, so the original gains from more training, and a
    compact network that learnt from the original alone could not keep up with a control that may gain.
    """

    def set_up(data: Path) -> Setting:
        learnt, held = training_images(data)
        x, labels = cifar(data)
        return Setting(
            model=build(data), example=x[:1], judge=top_1(x.split(500), labels), trains=True,
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
    Case(name="resnet50-imagenet", set_up=on_imagenet(resnet50, normalised), least_cut=0.10, most_fall=0.005),
    Case(name="mobilenetv2-imagenet", set_up=on_imagenet(mobilenet, plus_minus_one), least_cut=0.0, most_fall=0.005),
    Case(name="yolo-coco", set_up=detector, least_cut=0.0, most_fall=0.005),
    Case(
        name="resnet20-cifar",
        set_up=on_cifar(resnet_of(20), target={"macs": 0.65}, budget_s=3600),
        least_cut=0.35,
        most_fall=0.0,
    ),
    Case(
        name="resnet56-cifar",
        set_up=on_cifar(resnet_of(56), target={"macs": 0.5}, budget_s=7200),
        least_cut=0.50,
        most_fall=0.0,
    ),
    Case(
        name="vgg16-cifar-scar",
        set_up=on_cifar(trained_vgg, steps=SCAR, budget_s=7200),
        least_cut=0.80,
        least_parameter_cut=0.90,
        most_fall=0.0,
    ),
)


def run(case: Case, data: Path, seed: int, folder: Path, budget_s: float | None = None) -> Row:
    """Compact the network, then score it; of trained ones also the control. Goes on where a killed run stopped."""
    setting = case.set_up(data)
    if setting.trains and budget_s is not None:
        setting = replace(setting, options={**setting.options, "budget_s": budget_s})
    say = lambda line: print(f"{case.name}, seed {seed}: {line}", file=sys.stderr, flush=True)  # noqa: E731
    started_s = time.monotonic()
    place = folder / f"{case.name}-{seed}"
    kept = {"checkpoint": place / "checkpoint"} if setting.trains else {}
    small = compact(setting.model, setting.example, seed=seed, progress=say, **setting.options, **kept)
    seconds = time.monotonic() - started_s
    print(small.compaction, flush=True)
    save(small, place / "network", setting.example, overwrite=True)
    control = None
    if setting.trains:
        same = {name: value for name, value in setting.options.items() if name not in ("target", "steps")}
        trained = compact(
            setting.model, setting.example, seed=seed, progress=say, steps=("simplify", "recover"),
            checkpoint=place / "control", **same,
        )  # fmt: skip
        control = setting.judge(trained)
    before, after = (measured(network, (setting.example,))[2] for network in (setting.model, small))
    first, last = setting.judge(setting.model), setting.judge(small)
    return Row(
        case=case.name, seed=seed, parameters=(before.parameters, after.parameters), macs=(before.macs, after.macs),
        num_bytes=(before.num_bytes, after.num_bytes),
        exact_macs=next(step.after.macs for step in small.compaction.steps if step.name == "simplify"),
        before=first, after=last, control=control, seconds=seconds, steps=str(small.compaction),
        held=reached(case, before, after, (control or first).value - last.value),
    )  # fmt: skip


def reached(case: Case, before: Size, after: Size, fall: float) -> bool:
    """Whether a run holds its bar; ``fall`` is that of the score."""
    return (
        1 - after.macs / before.macs >= case.least_cut - ROUNDING
        and 1 - after.parameters / before.parameters >= case.least_parameter_cut - ROUNDING
        and fall <= case.most_fall + ROUNDING
    )


def table_of(rows: Sequence[Row]) -> Table:
    """A line for each run."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("network", "seed", "MACs", "exact alone", "parameters", "before", "control", "after", "seconds", ""):
        table.add_column(column, justify="left" if column in ("network", "") else "right")
    for row in rows:
        parameters, exact = 1 - row.parameters[1] / row.parameters[0], 1 - row.exact_macs / row.macs[0]
        table.add_row(
            row.case, str(row.seed), f"-{row.cut:.1%}", f"-{exact:.1%}", f"-{parameters:.1%}",
            str(row.before), str(row.control or ""), str(row.after), f"{row.seconds:.0f}",
            "PASS" if row.held else "FAIL",
        )  # fmt: skip
    return table


def main(argv: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(prog="python -m bench.compaction", description=__doc__.splitlines()[0])
    made.add_argument("--only", default="imagenet", metavar="WORD", help="cases whose name holds it (default "
                      "%(default)s; '' for all: hours)")  # fmt: skip
    made.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each case that trains")
    made.add_argument("--threads", type=int, default=2, metavar="N")
    made.add_argument("--budget", type=float, metavar="SECONDS", help="of each training, instead of the bar's")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    arguments = made.parse_args(argv)
    cases = [case for case in CASES if arguments.only in case.name]
    if not cases:
        print(f"no case holds {arguments.only!r}; there are: {', '.join(case.name for case in CASES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data, rows = data_folder(), []
    for case in cases:
        for seed in range(arguments.seeds if "cifar" in case.name else 1):
            rows.append(run(case, data, seed, arguments.out, arguments.budget))
            Console(width=170).print(table_of(rows))
            found = {
                "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "torch": torch.__version__,
                "processor": platform.processor() or platform.machine(), "threads": arguments.threads,
                "rows": [asdict(row) for row in rows],
            }  # fmt: skip
            (arguments.out / "compaction.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if not all(row.held for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
