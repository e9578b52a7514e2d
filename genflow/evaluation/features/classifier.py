"""A small classifier, trained once per dataset; `multiscale.py` makes the default features from its layers.

It learns the labels of the dataset. Without labels (or with only one), it learns by how many quarter turns a picture
was rotated. Its last hidden layer therefore separates what matters in this data. Training takes seconds, needs no
download and works for any picture size.

    space-to-depth to at most 32 x 32 -> conv 16 -> conv 32, halved -> residual conv 32 -> conv 64, halved
    -> linear 64, the hidden layer -> linear classes

References:
    Unsupervised Representation Learning by Predicting Image Rotations (Gidaris et al., 2018)
    https://arxiv.org/abs/1803.07728
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.maths.rng import key
from genflow.training.muon import Muon
from genflow.training.optim import AdamW, skip_compiler_import
from genflow.training.precision import multiplies_bfloat16

WIDTHS, FEATURES = (16, 32, 64), 64  # channels of the three feature maps, and the size of the hidden layer
GRID = 32  # largest side of the feature maps
BATCH, EPOCHS, MIN_STEPS, MAX_STEPS = 128, 30, 300, 1500  # training: batch size, epochs, and bounds on the steps
SMOOTHING = 0.1  # share of a label that is spread over all classes
UNSEEN = 4 / 127.5  # largest deviation of noise, and change of a channel's brightness, in training: 4 grey levels
RATE = 0.1  # learning rate of Muon; AdamW trains all other parameters with a tenth of it
EMBED_BATCH = 500  # batch size of inference


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Classifier(nn.Module):
    """The network.

    Args:
        shape: (C, H, W) of a picture.
        classes: number of outputs.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        C, H, W = shape
        self.factor = -(-max(H, W) // GRID)
        self.padding = (0, -W % self.factor, 0, -H % self.factor)
        fine, middle, coarse = WIDTHS
        self.stem = _conv(C * self.factor**2, fine)
        self.halve = _conv(fine, middle, stride=2)
        self.residual = _conv(middle, middle)
        self.shrink = _conv(middle, coarse, stride=2)
        rows, columns = (math.ceil(math.ceil(side / self.factor) / 4) for side in (H, W))
        self.hidden = nn.Linear(coarse * rows * columns, FEATURES, bias=False)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def layers(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures x (N, C, H, W) in [-1, 1] as three feature maps (N, C', H', W'), from fine to coarse."""
        stem = self.stem(F.pixel_unshuffle(F.pad(x, self.padding, value=-1.0), self.factor))
        halved = self.halve(stem)
        middle = halved + self.residual(halved)
        return stem, middle, self.shrink(middle)

    def last_hidden(self, coarse: Tensor) -> Tensor:
        """The hidden layer (N, 64), all nonnegative, from the coarsest feature map."""
        return F.relu(self.norm(self.hidden(coarse.flatten(1))))

    def features(self, x: Tensor) -> Tensor:
        """Pictures x (N, C, H, W) in [-1, 1] as the hidden layer (N, 64)."""
        return self.last_hidden(self.layers(x)[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(frozen=True)
class Task:
    """The training task of the classifier.

    Args:
        kind: "labels", or "turns" for quarter turns (half turns for pictures that are not square).
        classes: number of possible answers.
    """

    kind: str
    classes: int

    @classmethod
    def of(cls, classes: int, shape: tuple[int, int, int]) -> "Task":
        """The labels of the data if there are two or more; else turns."""
        if classes >= 2:
            return cls("labels", classes)
        return cls("turns", 4 if shape[1] == shape[2] else 2)

    def ask(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures and correct answers for one training step."""
        if self.kind == "labels":
            return x, labels
        turns = torch.randint(self.classes, (len(x),), generator=generator)
        turned = torch.stack([torch.rot90(p, int(t) * (4 // self.classes), (1, 2)) for p, t in zip(x, turns)])  # noqa: B905
        return turned, turns


def to_input(display: np.ndarray) -> Tensor:
    """Pictures (N, H, W, C) uint8 0..255 as the network's input (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(display)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def default_steps(pictures: int) -> int:
    """The number of training steps for a number of pictures: 30 epochs, but 300 to 1,500 steps."""
    return min(MAX_STEPS, max(MIN_STEPS, EPOCHS * pictures // min(BATCH, pictures)))


def train(
    display: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    task: Task,
    shape: tuple[int, int, int],
    *,
    seed: int = 0,
    steps: int | None = None,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Classifier:
    """Train the network; the result is identical to the bit for the same arguments, machine and number of threads.

    Args:
        display: maps row indices to pictures (B, H, W, C) uint8 0..255.
        labels: (N,), one per row.
        task: the training task.
        shape: (C, H, W).
        seed: seed of the initial weights and the order of rows.
        steps: number of steps; None: `default_steps`.
        progress: called with (step, steps).
    """
    n = len(labels)
    steps = steps or default_steps(n)
    answers = torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(key(seed, "judge"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "judge weights"))
        net = Classifier(shape, task.classes)
    fast = multiplies_bfloat16(torch.device("cpu"))

    def loss(rows: Tensor) -> Tensor:
        x, y = task.ask(_disturbed(to_input(display(rows.numpy())), generator), answers[rows], generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            return F.cross_entropy(net(x).float(), y, label_smoothing=SMOOTHING)

    return optimize(net, loss, n, generator, steps, progress)


def _disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures x with noise and other brightness that people hardly see, so that they change the features little."""
    deviation = UNSEEN * torch.rand((len(x), 1, 1, 1), generator=generator)
    brighter = UNSEEN * (2 * torch.rand((*x.shape[:2], 1, 1), generator=generator) - 1)
    return (x + brighter + deviation * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def optimize(
    net: Classifier,
    loss: Callable[[Tensor], Tensor],
    n: int,
    generator: torch.Generator,
    steps: int,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Classifier:
    """Train a network, and return it frozen.

    Args:
        net: the network.
        loss: maps row indices (B,) to the loss of a training step.
        n: number of rows.
        generator: of the order of rows.
        steps: number of steps.
        progress: called with (step, steps).
    """
    skip_compiler_import()
    optimizers = _optimizers(net.train())
    batch, order = min(BATCH, n), torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(n, generator=generator)
        rows, order = order[:batch], order[batch:]
        found = loss(rows)
        net.zero_grad(set_to_none=True)
        found.backward()
        weight = min(1.0, (step + 1) / 50) * min(1.0, (steps - step) / (0.8 * steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = weight * group["base_lr"]
            optimizer.step()
        if step % 50 == 49:
            progress(step + 1, steps)
    return net.eval().requires_grad_(False)


def _optimizers(net: Classifier) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in net.named_parameters() if p.dim() > 1 and not name.startswith("head")]
    rest = [p for name, p in net.named_parameters() if p.dim() == 1 or name.startswith("head")]
    made: list[Any] = [Muon(matrices, lr=RATE, momentum=0.9), AdamW(rest, lr=0.1 * RATE, weight_decay=0.0)]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return made


@torch.no_grad()
def embed(net: Classifier, display: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 64) float64 and predicted classes (N,) of pictures (N, H, W, C) uint8 0..255."""
    features, classes = [], []
    for start in range(0, len(display), EMBED_BATCH):
        found = net.features(to_input(display[start : start + EMBED_BATCH]))
        features.append(found.double().numpy())
        classes.append(net.head(found).argmax(1).numpy())
    return np.concatenate(features or [np.zeros((0, FEATURES))]), np.concatenate(classes or [np.zeros(0, np.int64)])


@torch.no_grad()
def accuracy(net: Classifier, display: np.ndarray, labels: np.ndarray, task: Task) -> float:
    """The share of correct answers on pictures (N, H, W, C) uint8 0..255."""
    generator = torch.Generator().manual_seed(key("judge accuracy"))
    right = 0
    for start in range(0, len(display), EMBED_BATCH):
        x = to_input(display[start : start + EMBED_BATCH])
        x, y = task.ask(x, torch.from_numpy(labels[start : start + EMBED_BATCH]), generator)
        right += int((net(x).argmax(1) == y).sum())
    return right / max(1, len(display))
