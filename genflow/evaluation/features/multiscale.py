"""The default features: what a picture shows, and its texture at several scales.

    hidden                  the classifier's last hidden layer, 64 features: what the picture shows
    stem, middle, coarse    mean and deviation of each channel of the classifier's three feature maps
    spectrum                log of the mean energy of each frequency in the picture's 8 x 8 blocks (DCT)

A classifier learns to ignore noise, blur and fine patterns, which people see at once, so its last layer alone misses
them. The feature maps and the spectrum show them. Each of the last four parts is projected on its 8 main directions
among real pictures, where it has mean 0 and covariance 1. Directions of little variance thus weigh as much as others:
a fine pattern changes them most. The hidden layer is scaled to a total variance of 32, four times that of another part.

`benchmarks/damage.py` measures what known damage costs with these features.

Reference, on what the last layer of a classifier does not see:
    The Role of ImageNet Classes in Frechet Inception Distance (Kynkaanniemi et al., 2023)
    https://arxiv.org/abs/2203.06026
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.evaluation.features.classifier import EMBED_BATCH, FEATURES, WIDTHS, Classifier, to_input

DIRECTIONS = 8  # of each part but the hidden layer
HIDDEN_VARIANCE = 32.0  # total, of the hidden layer
BLOCK = 8  # pixels; side of the blocks of the spectrum
FIT_ROWS = 4096  # largest number of pictures by which the directions are found
QUIET = 1e-3  # added to energies, so that noise below some 5 grey levels, which few people see, counts little
FLAT = 1e-3  # smallest variance of a direction, as a share of the mean over all directions


class Multiscale(nn.Module):
    """A classifier, and the projections of its layers and of the spectrum.

    Args:
        net: the classifier, trained.
        shape: (C, H, W) of a picture.
    """

    hidden_scale: Tensor
    waves: Tensor

    def __init__(self, net: Classifier, shape: tuple[int, int, int]) -> None:
        super().__init__()
        C, H, W = shape
        self.net, self.block = net, min(BLOCK, H, W)
        self.register_buffer("hidden_scale", torch.ones(()))
        widths = (*(2 * width for width in WIDTHS), C * self.block**2)
        self.projections = nn.ModuleList(nn.Linear(width, DIRECTIONS) for width in widths)
        self.register_buffer("waves", _waves(self.block), persistent=False)

    def parts(self, x: Tensor) -> list[Tensor]:
        """Pictures x (N, C, H, W) in [-1, 1] as the hidden layer (N, 64) and the four other parts (N, D)."""
        maps = self.net.layers(x)
        pooled = [torch.cat([h.mean((2, 3)), h.std((2, 3), correction=0)], 1) for h in maps]
        return [self.net.last_hidden(maps[-1]), *pooled, self.spectrum(x)]

    def spectrum(self, x: Tensor) -> Tensor:
        """The log-energy of every frequency (N, C * block^2); colours are grey, red - green and blue - grey."""
        if x.shape[1] == 3:
            grey = x.mean(1)
            x = torch.stack([grey, x[:, 0] - x[:, 1], x[:, 2] - grey], 1)
        N, C, H, W = x.shape
        found = F.conv2d(x.reshape(N * C, 1, H, W) / 2, self.waves, stride=max(1, self.block // 2))
        return torch.log(found.square().mean((2, 3)) + QUIET).reshape(N, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures x (N, C, H, W) in [-1, 1] as features (N, 96)."""
        hidden, *others = self.parts(x)
        projected = [project(part) for project, part in zip(self.projections, others, strict=True)]
        return torch.cat([hidden * self.hidden_scale, *projected], 1)

    @torch.no_grad()
    def fit(self, display: np.ndarray) -> None:
        """Find the directions and the scale of the hidden layer by real pictures (N, H, W, C) uint8 0..255."""
        found = [self.parts(to_input(display[i : i + EMBED_BATCH])) for i in range(0, len(display), EMBED_BATCH)]
        hidden, *others = (torch.cat(part).double().numpy() for part in zip(*found, strict=True))
        total = float(hidden.var(0).sum())
        self.hidden_scale.fill_(math.sqrt(HIDDEN_VARIANCE / total) if total > 0 else 1.0)
        for project, part in zip(self.projections, others, strict=True):
            weight, bias = _directions(part)
            project.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})

    @torch.no_grad()
    def embed(self, display: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, 96) float64 and predicted classes (N,) of pictures (N, H, W, C) uint8 0..255."""
        features, classes = [np.zeros((0, FEATURES + 4 * DIRECTIONS))], [np.zeros(0, np.int64)]
        for start in range(0, len(display), EMBED_BATCH):
            found = self(to_input(display[start : start + EMBED_BATCH]))
            features.append(found.double().numpy())
            hidden = found[:, :FEATURES] / self.hidden_scale
            classes.append(self.net.head(hidden).argmax(1).numpy())
        return np.concatenate(features), np.concatenate(classes)


def _waves(side: int) -> Tensor:
    """The orthonormal two-dimensional cosines of a block, (side^2, 1, side, side)."""
    at, frequency = np.arange(side) + 0.5, np.arange(side)[:, None]
    cosines = np.cos(np.pi * frequency * at / side) * np.sqrt(np.where(frequency == 0, 1, 2) / side)
    return torch.from_numpy(np.einsum("fi,gj->fgij", cosines, cosines).reshape(-1, 1, side, side)).float()


def _directions(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (8, D) and bias (8,) that map a part (N, D) to its main directions, with mean 0 and variance 1."""
    mean = part.mean(0)
    values, vectors = np.linalg.eigh(np.cov(part, rowvar=False))
    values, vectors = values[::-1][:DIRECTIONS].clip(min=0), vectors[:, ::-1][:, :DIRECTIONS]
    least = FLAT * float(part.var(0).mean())
    weight = (vectors / np.sqrt(values + least + 1e-30)).T
    return weight, -weight @ mean
