"""Train the network of the SCAR bar from nothing: VGG-16 with batch normalisation, of CIFAR's size, on the JPEG images.

    .venv/bin/python -m bench.vgg_cifar --out vgg/ --epochs 60 --seed 0

14.7 million parameters, 313 million MACs for an image. Of the 50,000 training images 5,000 are for validation, the same
for every seed; the test images are not read here. SGD with momentum, the learning rate up for two epochs and then down
along half a cosine; images are mirrored and shifted at random. The state is written to ``--out`` every minute, a draft
first and then put in place, and a run that was ended at any time goes on from there to the result that it would have
had. In the end ``model.pt`` holds the weights for ``network()``, ``log.txt`` the accuracy after each epoch.

``--seconds`` ends early, to see how long an epoch takes. ``--precision bfloat16`` computes convolutions in bfloat16 and
keeps the weights in float32; ``--device cuda`` trains on an accelerator. On one core, a step of 128 images took 1.4 s
in float32 and 0.7 s in bfloat16 (AMD EPYC, PyTorch 2.15, 2026-11-21, other programs running), 2.3 s and 3.2 s on an
Intel Xeon that has bfloat16 instructions but no AMX (2026-11-23); an epoch has 351.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg16_bn

from bench.pretrained import data_folder

CLASSES = 10
VALIDATION = 5_000
BATCH = 128
LEARNING_RATE = 0.05
WARM_UP_EPOCHS = 2
WEIGHT_DECAY = 5e-4
SMOOTHING = 0.1
SHIFT = 4
"""Pixels, in each direction."""
SAVE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Pixels [images, 3, 32, 32], normalised, and their classes [images]."""

    pixels: Tensor
    labels: Tensor


def network() -> nn.Module:
    """VGG-16's convolutions, the mean of each channel, one linear layer; weights random."""
    return nn.Sequential(
        vgg16_bn(weights=None).features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)
    )


def training_images(data: Path) -> tuple[Images, Images]:
    """For training and for validation; ``data`` is the folder of real images, its loaders importable."""
    import images

    pixels, labels = images.cifar10("train", data)
    order = np.random.default_rng(0).permutation(len(labels))

    def part(rows: Any) -> Images:
        x = torch.from_numpy(images.normalise(pixels[rows])).contiguous(memory_format=torch.channels_last)
        return Images(pixels=x, labels=torch.from_numpy(labels[rows]))

    return part(order[VALIDATION:]), part(order[:VALIDATION])


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image mirrored or not, and shifted by up to ``SHIFT`` pixels, zeros coming in."""
    n, _, rows, columns = x.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    top, left = (torch.randint(2 * SHIFT + 1, (n, 1), generator=generator) for _ in range(2))
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    wide = F.pad(x, (SHIFT,) * 4).permute(0, 2, 3, 1)
    down, across = top + torch.arange(rows), left + torch.arange(columns)
    chosen = wide[torch.arange(n)[:, None, None], down[:, :, None], across[:, None, :]]
    return chosen.permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, device: str = "cpu") -> float:
    """The share of classes found, in float32 and evaluation mode."""
    model.eval()
    pairs = zip(images.pixels.split(500), images.labels.split(500), strict=True)
    right = sum(int((model(x.to(device)).argmax(1).cpu() == labels).sum()) for x, labels in pairs)
    return right / len(images.labels)


class Training:
    """A network on its way, and all that is needed to go on from here."""

    def __init__(self, images: Images, *, epochs: int, seed: int, device: str, precision: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: Any = network().to(device, memory_format=torch.channels_last)
        self.step = 0
        self.steps_per_epoch = len(images.labels) // BATCH
        self._images, self._epochs, self._seed, self._device = images, epochs, seed, device
        self._half = precision == "bfloat16"
        norms = [parameter for parameter in self.model.parameters() if parameter.dim() == 1]
        weights = [parameter for parameter in self.model.parameters() if parameter.dim() > 1]
        groups = [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": norms}]
        self._optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True)

    @property
    def done(self) -> bool:
        return self.step == self._epochs * self.steps_per_epoch

    def advance(self) -> float:
        """One step; its loss."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self._images.labels), generator=self._generator("order", epoch))
        rows = order[place * BATCH : (place + 1) * BATCH]
        x = augmented(self._images.pixels[rows], self._generator("augmented", self.step)).to(self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        self.model.train()
        with torch.autocast(self._device, torch.bfloat16, enabled=self._half):
            found = self.model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(found.float(), self._images.labels[rows].to(self._device), label_smoothing=SMOOTHING)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _rate(self) -> float:
        warm = min(1.0, (self.step + 1) / (WARM_UP_EPOCHS * self.steps_per_epoch))
        return LEARNING_RATE * warm * (1 + math.cos(math.pi * self.step / (self._epochs * self.steps_per_epoch))) / 2

    def _generator(self, word: str, number: int) -> torch.Generator:
        """Random numbers that hang on the place alone, so that a run that goes on has the same."""
        kind = ("order", "augmented").index(word)
        return torch.Generator().manual_seed((self._seed * 2 + kind) * 10_000_000 + number)

    @property
    def state(self) -> dict[str, Any]:
        """Plain values and tensors."""
        about = {"epochs": self._epochs, "seed": self._seed}
        return {**about, "step": self.step, "model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """``ValueError`` where it is of another run."""
        if (state["epochs"], state["seed"]) != (self._epochs, self._seed):
            raise ValueError(f"the state is of epochs={state['epochs']}, seed={state['seed']}; remove it to start anew")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


def save(value: Any, path: Path) -> None:
    """Beside its place first: a kill at any time leaves the old or the new one."""
    draft = path.with_suffix(".draft")
    torch.save(value, draft)
    draft.replace(path)


def train(training: Training, validation: Images, out: Path, *, seconds: float, device: str) -> None:
    """To the end, or for ``seconds``; goes on where ``out`` says."""
    state, log = out / "state.pt", out / "log.txt"
    if state.exists():
        training.restore(torch.load(state, map_location=device, weights_only=True))
    started_s = saved_s = time.monotonic()
    first = training.step
    while not training.done and time.monotonic() - started_s < seconds:
        loss = training.advance()
        epoch, place = divmod(training.step, training.steps_per_epoch)
        if place == 0:
            line = f"epoch {epoch}: loss {loss:.3f}, validation {accuracy(training.model, validation, device):.2%}"
            print(line, flush=True)
            with log.open("a") as file:  # a run that goes on from before this line writes it again
                file.write(line + "\n")
        if time.monotonic() - saved_s >= SAVE_S or training.done:
            save(training.state, state)
            saved_s = time.monotonic()
    each_s = (time.monotonic() - started_s) / max(1, training.step - first)
    print(f"{training.step - first} steps, {each_s:.3f} s each: {each_s * training.steps_per_epoch:.0f} s an epoch")
    if training.done:
        save(training.model.state_dict(), out / "model.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the state and the result")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so many, state kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    images, validation = training_images(data_folder())
    training = Training(
        images, epochs=options.epochs, seed=options.seed, device=options.device, precision=options.precision
    )
    train(training, validation, options.out, seconds=options.seconds, device=options.device)


if __name__ == "__main__":
    main()
