"""The two photographs that scikit-learn brings along, as networks for ImageNet expect them."""

from __future__ import annotations

import torch
from torch import Tensor

from edgedi.bench.digits import need_demo_extra
from edgedi.errors import install

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_photographs(size: int = 224) -> dict[str, Tensor]:
    """File name -> normalised image [1, 3, size, size]: shorter side resized, middle cut out."""
    try:
        from sklearn.datasets import load_sample_images

        bundled = load_sample_images()
    except ImportError as error:  # scikit-learn itself, or the reader of JPEG that it looks for
        if error.name is None:
            raise ValueError(f"the demo needs pillow: {install('demo')} ({error})") from error
        raise need_demo_extra(error) from error
    names = [name.replace("\\", "/").rpartition("/")[2] for name in bundled.filenames]
    return {name: _prepare(torch.tensor(image), size) for name, image in zip(names, bundled.images, strict=True)}


def _prepare(image: Tensor, size: int) -> Tensor:
    """uint8 [height, width, 3] -> float32 [1, 3, size, size]."""
    x = image.permute(2, 0, 1).unsqueeze(0).float() / 255
    scale = size / min(x.shape[2:])
    height, width = (max(size, round(length * scale)) for length in x.shape[2:])
    x = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    x = x[:, :, top : top + size, left : left + size]
    return ((x - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)).contiguous()
