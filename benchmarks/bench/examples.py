"""Training examples of other libraries, as they are published.

Each has the example's own net, number format, batch size, optimizer, learning rates and average; only the size and
channels of the pictures follow the data. Nets that halve the side more often than the data allow get padded pictures.
The batches come from memory, and no example mirrors pictures.

All sample in the number format of `precision.py`, from averaged weights if the example has an average.

References:
    diffusers, examples/unconditional_image_generation/train_unconditional.py
    https://github.com/huggingface/diffusers/tree/main/examples/unconditional_image_generation
    torchcfm, examples/images/conditional_mnist.ipynb      https://github.com/atong01/conditional-flow-matching
    denoising_diffusion_pytorch, README                    https://github.com/lucidrains/denoising-diffusion-pytorch
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench.peers import placeholder
from benchmarks.bench.precision import autocast

EVALUATIONS = 25  # of a net for a picture


class Example(Protocol):
    """A training.

    Attributes:
        batch: rows of a step.
        evaluations: of the net for a picture.
        net: whose weights `weights` returns, and `sample` uses.
    """

    batch: int
    evaluations: int
    net: Any

    def step(self, x: Tensor, labels: Tensor, position: float) -> None:
        """Make a step on pictures (B, C, H, W) with labels (B,), at a share of the budget."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights to sample with."""

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Pictures (N, C, H, W)."""


def copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def ddim(predict: Callable[[Tensor, Tensor], Tensor], levels: Any, noise: Tensor, steps: int) -> Tensor:
    """diffusers' `DDIMScheduler`, with the noise levels of a training.

    Args:
        predict: the noise in x_t at times (N,).
        levels: the training's scheduler.
        noise: (N, C, H, W).
        steps: number of evaluations.
    """
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler.from_config(levels.config)
    scheduler.set_timesteps(steps)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t.expand(len(x))), t, x).prev_sample
    return x


def integral(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """The end of the ODE from t = 0, noise, to t = 1 by the two-step method of Adams and Bashforth.

    Args:
        velocity: at x_t and times (N,).
        noise: (N, C, H, W).
        steps: number of evaluations.
    """
    x, before = noise, None
    for step in range(steps):
        now = velocity(x, torch.full((len(x),), step / steps))
        x = x + (now if before is None else 1.5 * now - 0.5 * before) / steps
        before = now
    return x


def padding(side: int, multiple: int) -> int:
    """Pixels to add on each side so that the side is a multiple."""
    return (-side % multiple) // 2


class Padded:
    """Pads the pictures of an example, and crops its samples."""

    pad = 0

    def padded(self, x: Tensor) -> Tensor:
        """Pictures with a black border."""
        return F.pad(x, (self.pad,) * 4, value=-1.0) if self.pad else x

    def cropped(self, x: Tensor) -> Tensor:
        """Pictures without the border."""
        return x[..., self.pad : -self.pad, self.pad : -self.pad] if self.pad else x


class DiffusersExample(Padded):
    """`train_unconditional.py`: a U-Net of 114 million weights, without classes, in fp32."""

    batch, evaluations = 16, 10

    def __init__(self, shape: tuple[int, int, int], classes: int, rows: int, seed: int) -> None:
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.pad = padding(shape[1], 32)
        torch.manual_seed(seed)
        plain, attending = "DownBlock2D", "AttnDownBlock2D"
        net: Any = UNet2DModel(
            sample_size=shape[1] + 2 * self.pad, in_channels=shape[0], out_channels=shape[0], layers_per_block=2,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=(plain, plain, plain, plain, attending, plain),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        self.net = net.train()
        self._levels: Any = DDPMScheduler(num_train_timesteps=1000)
        self._optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        steps = 100 * math.ceil(rows / self.batch)  # 100 epochs
        self._rates = get_scheduler("cosine", self._optimizer, num_warmup_steps=500, num_training_steps=steps)
        self._average = EMAModel(self.net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def step(self, x: Tensor, labels: Tensor, position: float) -> None:
        x = self.padded(x)
        noise = torch.randn(x.shape)
        times = torch.randint(0, 1000, (len(x),))
        predicted = self.net(self._levels.add_noise(x, noise, times), times).sample
        F.mse_loss(predicted, noise).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self._optimizer.step()
        self._rates.step()
        self._optimizer.zero_grad()
        self._average.step(self.net.parameters())

    def weights(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.net.named_parameters()]
        return copies(dict(zip(names, self._average.shadow_params, strict=True)))

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        wide = torch.randn_like(self.padded(noise))
        return self.cropped(ddim(lambda x, t: self.net(x, t).sample.float(), self._levels, wide, self.evaluations))


class TorchCfmExample:
    """`conditional_mnist.ipynb`: a U-Net of a million weights with classes, Adam with 1e-3, without an average."""

    batch, evaluations = 128, 10

    def __init__(self, shape: tuple[int, int, int], classes: int, rows: int, seed: int) -> None:
        from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
        from torchcfm.models.unet import UNetModel

        torch.manual_seed(seed)
        self.net: Any = UNetModel(dim=shape, num_channels=32, num_res_blocks=1, num_classes=classes, class_cond=True)
        self._optimizer = torch.optim.Adam(self.net.parameters())
        self._flow: Any = ConditionalFlowMatcher(sigma=0.0)

    def step(self, x: Tensor, labels: Tensor, position: float) -> None:
        self._optimizer.zero_grad()
        t, xt, ut = self._flow.sample_location_and_conditional_flow(torch.randn_like(x), x)
        torch.mean((self.net(t, xt, labels) - ut) ** 2).backward()
        self._optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        return copies(self.net.state_dict())

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        return integral(lambda x, t: self.net(t, x, labels).float(), noise, self.evaluations)


class LucidrainsExample(Padded):
    """The README's `Trainer`: a U-Net of 36 million weights, without classes, two batches of 32 a step.

    The README asks for mixed precision in fp16, which is slow on CPUs: the format is that of `precision.py`.
    """

    batch, evaluations = 64, 10

    def __init__(self, shape: tuple[int, int, int], classes: int, rows: int, seed: int) -> None:
        with placeholder("torchvision"):
            from denoising_diffusion_pytorch import GaussianDiffusion, Unet
            from ema_pytorch import EMA

        self.pad = padding(shape[1], 8)
        torch.manual_seed(seed)
        self.net: Any = Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=True, channels=shape[0])
        self._diffusion: Any = GaussianDiffusion(
            self.net, image_size=shape[1] + 2 * self.pad, sampling_timesteps=self.evaluations, auto_normalize=False
        )
        self._optimizer = torch.optim.Adam(self._diffusion.parameters(), lr=8e-5, betas=(0.9, 0.99))
        self._average: Any = EMA(self._diffusion, beta=0.995, update_every=10)

    def step(self, x: Tensor, labels: Tensor, position: float) -> None:
        for part in self.padded(x).chunk(2):
            with autocast():
                loss = self._diffusion(part) / 2
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self._diffusion.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._average.update()

    def weights(self) -> dict[str, Tensor]:
        return copies(self._average.ema_model.model.state_dict())

    def sample(self, noise: Tensor, labels: Tensor) -> Tensor:
        drawn: Tensor = self._diffusion.sample(batch_size=len(noise))
        return self.cropped(drawn).clone()


PUBLISHED: dict[str, Any] = {
    "diffusers": DiffusersExample,
    "torchcfm": TorchCfmExample,
    "denoising_diffusion_pytorch": LucidrainsExample,
}
