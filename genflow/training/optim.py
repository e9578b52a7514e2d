"""The optimizers of a player: Muon for matrices, AdamW for the rest, without importing torch's compiler.

torch 2.13 imports the compiler in every optimizer, only to exclude methods from compilation: 2.4 s of CPU in every
worker. genflow compiles nets, but no optimizer.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from genflow.recipe.schema import Train
from genflow.training.fsdp import is_sharded
from genflow.training.muon import Muon


class AdamW(torch.optim.AdamW):
    """torch's AdamW with an unwrapped `step`: torch's wrappers of it and of base-class methods import the compiler.

    Args:
        params: weights.
        options: of torch's AdamW.
    """

    def __init__(self, params: Iterable[nn.Parameter], **options: Any) -> None:
        skip_compiler_import()
        super().__init__(params, **options)

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def skip_compiler_import() -> None:
    """Mark each wrapped method as its own uncompiled version, as torch does once it has imported the compiler."""
    for method in vars(torch.optim.Optimizer).values():
        if original := getattr(method, "__wrapped__", None):
            original.__dict__.setdefault("__dynamo_disable", original)


def matrices_of(module: nn.Module, train: Train) -> list[nn.Parameter]:
    """The parameters that Muon moves: matrices and convolutions; none with AdamW."""
    if train.optimizer == "adamw":
        return []
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    params = [p for p in module.parameters() if p.requires_grad]
    return [p for p in params if p.dim() >= 2 and id(p) not in embeddings and 1 < p.shape[0] < p.numel()]


def optimizers_of(module: nn.Module, train: Train) -> dict[str, torch.optim.Optimizer]:
    """Muon for matrices and convolutions and AdamW at a tenth of its rate for the rest; or AdamW for all."""
    skip_compiler_import()
    matrices = matrices_of(module, train)
    chosen = {id(p) for p in matrices}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in chosen]
    made: dict[str, torch.optim.Optimizer] = {}
    if matrices:
        made["muon"] = Muon(matrices, lr=train.lr, weight_decay=train.weight_decay)
    if rest:
        lr = train.lr if train.optimizer == "adamw" else 0.1 * train.lr
        betas, fused = (train.beta1, train.beta2), not any(is_sharded(p) for p in rest)
        made["adamw"] = AdamW(rest, lr=lr, betas=betas, weight_decay=train.weight_decay, fused=fused)
    for optimizer in made.values():
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return made
