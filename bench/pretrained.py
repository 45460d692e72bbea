"""Pretrained networks and real images, read from a folder that is not part of the project: see CONTRIBUTING.md.

``data`` is that folder. Its own loaders stand in ``data/loaders`` and must be importable (``data_folder`` sees to it).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(os.environ.get("EDGEDI_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


def data_folder() -> Path:
    """The folder, its loaders importable. ``FileNotFoundError`` says how to name another."""
    if not DATA.is_dir():
        raise FileNotFoundError(f"no real images and networks at {DATA}; set EDGEDI_DATA to where they are")
    loaders = str(DATA / "loaders")
    if loaders not in sys.path:
        sys.path.insert(0, loaders)
    return DATA


def resnet_cifar(data: Path, depth: int) -> nn.Module:
    import cifar_resnet
    from safetensors.torch import load_file

    (path,) = (data / "cifar_resnet").glob(f"resnet{depth}-*.safetensors")
    state = {name.removeprefix("module."): tensor for name, tensor in load_file(path).items()}
    model = cifar_resnet.CifarResNet(depth)
    model.load_state_dict(state)
    return model.eval()


def resnet50(data: Path) -> nn.Module:
    import ktb
    from safetensors.torch import load_file

    (path,) = (data / "imagenet_resnet_pq").glob("*resnet50*.safetensors")
    model = ktb.resnet50()
    model.load_state_dict(ktb.decode(load_file(path)))
    return model.eval()


def mobilenet(data: Path) -> nn.Module:
    import mobilenet_v2
    from safetensors.torch import load_file

    (path,) = (data / "imagenet_mobilenet_v2").glob("*.safetensors")
    model = mobilenet_v2.MobileNetV2(same=True)
    model.load_state_dict(load_file(path))
    return model.eval()


def cifar(data: Path) -> tuple[Tensor, Tensor]:
    import images

    pixels, labels = images.cifar10("test", data)
    return torch.from_numpy(images.normalise(pixels)), torch.from_numpy(labels)


def imagenet(data: Path) -> tuple[np.ndarray, Tensor]:
    """500 images as bytes: as float32 they would take 300 MB."""
    import images

    pixels, labels = images.imagenet(224, data)
    return pixels, torch.from_numpy(labels)


def normalised(pixels: np.ndarray) -> Tensor:
    import images

    return torch.from_numpy(images.normalise(pixels))


def plus_minus_one(pixels: np.ndarray) -> Tensor:
    """RGB / 127.5 - 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1)


class Detector(nn.Module):
    """YOLO-Fastest's raw maps, without the settings that darknet's loader returns beside them."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        import darknet
        from safetensors.torch import load_file

        folder = data / "yolo_fastest"
        self.net = darknet.Net((folder / "yolo-fastest-1.1.cfg").read_text())
        self.net.load_state_dict(load_file(folder / "yolo-fastest-1.1.safetensors"))
        self.heads = [settings for settings in self.net.cfg if settings["type"] == "yolo"]
        self.eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [maps for maps, _ in self.net(x)]


def street_scenes(data: Path, count: int) -> Tensor:
    from PIL import Image

    paths = sorted((data / "coco128" / "images").glob("*.jpg"))[:count]
    pixels = [
        np.asarray(Image.open(path).convert("RGB").resize((320, 320), Image.Resampling.BILINEAR), dtype=np.float32)
        for path in paths
    ]
    return torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2) / 255).contiguous()


def true_boxes(data: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(boxes [number, 4] as left, top, right, bottom in 0 to 1, classes) of the images of ``street_scenes``."""
    true = []
    for path in sorted((data / "coco128" / "images").glob("*.jpg"))[:count]:
        labels = data / "coco128" / "labels" / f"{path.stem}.txt"
        text = labels.read_text() if labels.exists() else ""  # an image without boxes has no file
        rows = np.array([[float(word) for word in line.split()] for line in text.splitlines()]).reshape(-1, 5)
        middle, size = rows[:, 1:3], rows[:, 3:]
        true.append((np.concatenate([middle - size / 2, middle + size / 2], 1), rows[:, 0].astype(int)))
    return true


def detections(
    model: nn.Module, x: Tensor, heads: list[dict[str, str]], least_score: float
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(boxes, scores, classes) of every image of ``x`` [batch, 3, 320, 320]."""
    import darknet

    with torch.no_grad():
        maps = model(x)
    found = darknet.decode(list(zip(maps, heads, strict=True)), x.shape[-1], least_score)
    return [(boxes.numpy(), scores.numpy(), classes.numpy()) for boxes, scores, classes in found]
