"""Activation checkpointing: the layers of a net keep only their inputs, and are computed again in the backward pass.

The memory of activations falls to about that of one layer plus the inputs of all; a step takes about a third longer.
The same operations run on the same numbers, so the gradients have the same bits where kernels are deterministic.

References:
    Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016)   https://arxiv.org/abs/1604.06174
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_layers(module: nn.Module, again: Callable[[], AbstractContextManager[Any]] | None = None) -> None:
    """Let the layers of a module (see `layers`) keep only their inputs, whenever gradients are computed.

    Args:
        module: a player; its layers' `forward` is replaced.
        again: makes a context in which layers are computed again; None: none.
    """
    for layer in layers(module):
        draws = any(isinstance(part, nn.Dropout) and part.p > 0 for part in layer.modules())
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": draws}
        if again:
            options["context_fn"] = functools.partial(_contexts, again)
        setattr(layer, "forward", functools.partial(_forward, layer.forward, options))  # noqa: B010  mypy rejects `=`


def _contexts(again: Callable[[], AbstractContextManager[Any]]) -> tuple[Any, Any]:
    return nullcontext(), again()


def layers(module: nn.Module) -> list[nn.Module]:
    """The members of lists and sequences of modules that consist of several modules; the innermost ones."""
    found: dict[int, nn.Module] = {}
    for holder in module.modules():
        if isinstance(holder, nn.ModuleList | nn.Sequential):
            for member in holder:
                if any(True for _ in member.children()) and any(p.dim() > 1 for p in member.parameters()):
                    found[id(member)] = member
    lists = nn.ModuleList | nn.Sequential
    return [
        each for each in found.values()
        if not isinstance(each, lists) and not any(id(part) in found for part in each.modules() if part is not each)
    ]  # fmt: skip


def _forward(compute: Any, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return compute(*args, **kwargs)
    return checkpoint(compute, *args, **options, **kwargs)
