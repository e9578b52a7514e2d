"""Resume from a checkpoint: of several workers the first one chooses it, and the others must see the same files."""

import os
from pathlib import Path

import torch
from torch import nn

from genflow.training import checkpoint, checkpoint_folders, sharded_checkpoint
from genflow.training.ema import Ema
from genflow.training.session import Session
from genflow.training.workers import WorkerError, Workers

Seen = tuple[str, str, int]  # name, hash and step of a checkpoint; the name is empty if there is none


def choose(workers: Workers, session: Session) -> Path | None:
    """The checkpoint from which all workers resume; None if there is none.

    A worker that sees newer ones than the first worker leaves them aside: they may be damaged on another node.

    Raises:
        WorkerError: a worker does not see the files that the first worker sees.
        GenflowError: a worker cannot read them.
    """
    if workers.world == 1:
        return session.load()
    folder = workers.together(session.load)
    seen = workers.collect(_seen(folder))
    chosen = seen[0]
    if session.open and chosen[0] and _seen(folder) != chosen:
        opened = _open(session, chosen)
        folder = opened if _seen(opened) == chosen else folder
    nodes = workers.collect((_seen(folder), os.uname().nodename))
    for rank, (own, node) in enumerate(nodes):
        if own != chosen:
            raise WorkerError(
                f"worker {rank} on {node} sees {_words(own)}, and worker 0 on {nodes[0][1]} sees {_words(chosen)}: "
                "every node must see the same store"
            )
    return folder


def read(
    folder: Path, module: nn.Module, ema: Ema, optimizers: dict[str, torch.optim.Optimizer], device: str
) -> checkpoint.State:
    """Load a checkpoint of whole tensors or of shards into a net, its averages and its optimizers; return the state.

    Raises:
        DataError: the weights do not fit the net.
    """
    if sharded_checkpoint.is_in(folder):
        return sharded_checkpoint.read(folder, module, ema.state(), optimizers)
    average, state = checkpoint.read(folder, module, optimizers, device)
    ema.load(average)
    return state


def _open(session: Session, chosen: Seen) -> Path | None:
    assert session.open is not None
    try:
        return session.open(chosen[0])
    except Exception:  # a damaged copy; all workers hear of it below
        return None


def _seen(folder: Path | None) -> Seen:
    if folder is None:
        return "", "", 0
    return folder.name, checkpoint_folders.identity(folder), checkpoint.read_state(folder)["step"]


def _words(seen: Seen) -> str:
    name, content, step = seen
    return f"a checkpoint of step {step} ({name}, {content})" if name else "no checkpoint"
