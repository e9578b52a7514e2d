"""The training loops of other libraries on the network that genflow names `unet2d`, with their best flags.

Each is the loop of the library's own example. It gets what genflow has as well: classes, the faster number format, a
fused optimizer, and averages by torch's operations on lists.

References:
    diffusers, examples/unconditional_image_generation/train_unconditional.py
    https://github.com/huggingface/diffusers/tree/main/examples/unconditional_image_generation
    torchcfm, examples/images/cifar10/train_cifar10.py     https://github.com/atong01/conditional-flow-matching
    denoising_diffusion_pytorch, `Trainer`                 https://github.com/lucidrains/denoising-diffusion-pytorch
"""

import contextlib
import copy
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench.precision import autocast
from benchmarks.bench.steps import CLASSES, pictures

PARTS = ("datasets", "models", "transforms", "transforms.functional", "utils")  # of torchvision, that others import
CLIP = 1.0  # gradient norm in all three examples


def stock_unet(options: dict[str, Any], classes: int = CLASSES, seed: int = 0) -> Any:
    """diffusers' U-Net as it is, with its own embedding of classes.

    Args:
        options: of genflow's `unet2d`.
        classes: number of classes.
        seed: of the weights.
    """
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    return UNet2DModel(**{**options, "class_embed_type": None, "num_class_embeds": classes + 1}).train()


class Diffusers:
    """diffusers' loop: noise of 1000 levels, AdamW, clipping and `EMAModel`."""

    def __init__(
        self, options: dict[str, Any], shape: tuple[int, int, int], batch: int, classes: int = CLASSES, seed: int = 0
    ) -> None:
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.model = stock_unet(options, classes, seed)
        self.x, self.labels = pictures(shape, batch)
        self.levels: Any = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=True
        )
        self.rates: Any = get_scheduler("cosine", self.optimizer, num_warmup_steps=500, num_training_steps=10**6)
        self.average = EMAModel(self.model.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75, foreach=True)

    def steps(self, number: int) -> None:
        """Make a few steps."""
        for _ in range(number):
            self.step(self.x, self.labels)

    def step(self, x: Tensor, labels: Tensor) -> None:
        """Make a step on a batch."""
        noise = torch.randn_like(x)
        times = torch.randint(0, 1000, (len(x),))
        noisy = self.levels.add_noise(x, noise, times)
        with autocast():
            predicted = self.model(noisy, times, class_labels=labels).sample
        F.mse_loss(predicted.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP, foreach=True)
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad()
        self.average.step(self.model.parameters())


class TorchCfm:
    """torchcfm's loop of the CIFAR-10 example: Adam, warm-up, clipping and an average of the whole state."""

    decay = 0.9999

    def __init__(
        self, options: dict[str, Any], shape: tuple[int, int, int], batch: int, classes: int = CLASSES, seed: int = 0
    ) -> None:
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

        self.model = stock_unet(options, classes, seed)
        self.x, self.labels = pictures(shape, batch)
        self.flow: Any = ConditionalFlowMatcher(sigma=0.0)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-4, fused=True)
        self.rates: Any = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(step, 5000) / 5000)
        self.average: nn.Module = copy.deepcopy(self.model)

    def steps(self, number: int) -> None:
        """Make a few steps."""
        for _ in range(number):
            self.step(self.x, self.labels)

    def step(self, x: Tensor, labels: Tensor) -> None:
        """Make a step on a batch."""
        self.optimizer.zero_grad()
        t, xt, ut = self.flow.sample_location_and_conditional_flow(torch.randn_like(x), x)
        with autocast():
            vt = self.model(xt, 1000 * t, class_labels=labels).sample
        torch.mean((vt.float() - ut) ** 2).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP, foreach=True)
        self.optimizer.step()
        self.rates.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - self.decay)


class Lucidrains:
    """The loop of lucidrains' `Trainer`: `GaussianDiffusion` with Adam, clipping and its average every 10 steps."""

    def __init__(
        self, options: dict[str, Any], shape: tuple[int, int, int], batch: int, classes: int = CLASSES, seed: int = 0
    ) -> None:
        with placeholder("torchvision"):
            from denoising_diffusion_pytorch import GaussianDiffusion
            from ema_pytorch import EMA

        self.x, self.labels = pictures(shape, batch)
        self.model: Any = _ForLucidrains(stock_unet(options, classes, seed), shape[0], self.labels)
        self.diffusion: Any = GaussianDiffusion(self.model, image_size=shape[1], auto_normalize=False).train()
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True)
        self.average = EMA(self.diffusion, beta=0.995, update_every=10, use_foreach=True)

    def steps(self, number: int) -> None:
        """Make a few steps."""
        for _ in range(number):
            self.step(self.x, self.labels)

    def step(self, x: Tensor, labels: Tensor) -> None:
        """Make a step on a batch."""
        self.model.labels = labels
        with autocast():
            loss = self.diffusion(x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), CLIP, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update()


@contextlib.contextmanager
def placeholder(name: str) -> Iterator[None]:
    """Let a package import a library that only its reading and writing of files uses, even if it is not installed."""
    missing = importlib.util.find_spec(name) is None
    for each in (name, *(f"{name}.{part}" for part in PARTS)) if missing else ():
        sys.modules[each] = MagicMock(__spec__=None)
    try:
        yield
    finally:
        for each in [key for key in sys.modules if key.partition(".")[0] == name] if missing else ():
            del sys.modules[each]


class _ForLucidrains(nn.Module):
    """A U-Net of diffusers as `GaussianDiffusion` calls it."""

    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, model: Any, channels: int, labels: Tensor) -> None:
        super().__init__()
        self.model, self.channels, self.out_dim, self.labels = model, channels, channels, labels

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        predicted: Tensor = self.model(x, t, class_labels=self.labels).sample
        return predicted.float()


PEERS = {"diffusers": Diffusers, "torchcfm": TorchCfm, "denoising_diffusion_pytorch": Lucidrains}
