"""Modes of stacks (data/sources/stacked.py): a classifier of single pictures labels each channel; k classes give k^3
modes.

    captured   number of modes that at least one sample shows
    kl         KL(q || w) in nats, q_i the share of samples that show mode i, w_i its true share
    ceiling    the number of modes that as many held-out real stacks show; the floor of kl comes from them, too

N samples of M equally frequent modes show about M (1 - exp(-N / M)) modes: 2,500 samples do not show all of 1,000. The
variance of this number is sum_i exp(-l_i) (1 - exp(-l_i)), where l_i is the expected number of samples of mode i. It is
at most sum_i l_i exp(-l_i), the expected number of modes shown exactly once, from which the interval is computed.

References:
    Unrolled generative adversarial networks (Metz et al., 2017)   https://arxiv.org/abs/1611.02163
    VEEGAN (Srivastava et al., 2017), for the KL                   https://arxiv.org/abs/1705.07761
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from genflow.evaluation.interval import Z, half_sampled, halves
from genflow.evaluation.metrics.base import ALL, Metric, Samples
from genflow.system import source_hash
from genflow.system.source_hash import digest

if TYPE_CHECKING:
    from genflow.data.shards import Dataset
    from genflow.evaluation.features.classifier import Classifier
    from genflow.evaluation.features.extractor import DataSplits, Emit
    from genflow.storage.store import Store

WEIGHTS = "reader.safetensors"


def is_stack(data: "Dataset") -> bool:
    """Whether a dataset consists of stacks."""
    return bool(data.artifact.meta.get("source", {}).get("kind") == "stack")


def measure(inputs: Samples) -> dict[str, Any]:
    """The section `modes`, from `measure_modes`."""
    return measure_modes(inputs.store, inputs.data, inputs.extractor.real, inputs.records, inputs.emit)


def measure_modes(
    store: "Store", data: "Dataset", real: "DataSplits", records: np.ndarray, emit: "Emit"
) -> dict[str, Any]:
    """The modes that samples show, compared with as many held-out real stacks.

    Args:
        store: stores the classifier.
        data: a dataset of stacks.
        real: its `training` rows train the classifier, its `reference` rows give the ceiling.
        records: samples (N, H, W, 3); only as many are counted as there are held-out stacks.
        emit: receives the progress of training.

    Returns:
        {captured, of, interval, ceiling, kl, reader}: `kl` as in modes.py, `reader` {accuracy, on}.
    """
    from genflow.data.sources import stacked

    classes = int(data.artifact.meta["source"]["classes"])
    classify = reader(store, data, real, classes, emit)
    held_out = data.splits[real.split]
    rows = real.reference[: len(records)]
    truth = stacked.modes([held_out.ids[row] for row in rows])
    real_modes = classify(held_out.take(rows))
    train = stacked.modes(data.splits["train"].ids)
    share = np.bincount(train.ravel(), minlength=classes) / train.size
    weights = np.einsum("i,j,k->ijk", share, share, share).ravel()
    found = count(numbers(classify(records[: len(rows)]), classes), weights)
    ceiling = count(numbers(real_modes, classes), weights)
    found["kl"]["floor"] = ceiling["kl"]["value"]
    reads = {"accuracy": float(np.mean(real_modes == truth)), "on": "held-out channels"}
    return {**found, "ceiling": ceiling["captured"], "reader": reads}


def numbers(channels: np.ndarray, classes: int) -> np.ndarray:
    """The index of the mode (N,) of each stack, from the classes of its channels (N, 3)."""
    return channels @ classes ** np.arange(channels.shape[1])[::-1]


def count(found: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """{captured, of, interval, kl} from the modes that samples show (N,) and the true shares of modes (M,)."""
    n, modes = len(found), len(weights)

    def divergence(rows: np.ndarray) -> float:
        share = np.bincount(found[rows], minlength=modes) / len(rows)
        here = share > 0
        return float((share[here] * np.log(share[here] / weights[here])).sum())

    times = np.bincount(found, minlength=modes)
    captured, half_width = int((times > 0).sum()), Z * math.sqrt((times == 1).sum())
    kl = half_sampled(divergence(np.arange(n)), divergence, halves(np.zeros(n), 50), n, (0.0, math.inf))
    return {
        "captured": captured,
        "of": modes,
        "interval": [max(0.0, captured - half_width), min(float(modes), captured + half_width)],
        "kl": {**vars(kl), "n": n, "floor": None},
    }


def reader(store: "Store", data: "Dataset", real: "DataSplits", classes: int, emit: "Emit") -> Any:
    """The classifier of channels, records (N, H, W, 3) -> classes (N, 3); trained on the first call and stored."""
    from safetensors.torch import load_file, save_file

    from genflow.data.sources import stacked
    from genflow.data.values import to_display
    from genflow.evaluation.features import classifier

    code = source_hash.code_of("genflow/evaluation/metrics/stacked_modes.py")
    id = f"{data.artifact.name}-reader-{digest([data.facts.fingerprint, code])}"
    shape = (1, *data.facts.shape[1:])
    artifact = store.get("features", id)
    if artifact is None:
        with store.lock("features", id, uses=[data.artifact.id]):
            artifact = store.get("features", id)
            if artifact is None:
                net = _train(data, real, classes, shape, emit)
                with store.stage("features", id, name=data.artifact.name) as staged:
                    save_file(net.state_dict(), staged.path / WEIGHTS)
                    artifact = staged.commit(parents=[data.artifact.id], meta={"kind": "reader"})
    artifact.verify()
    net = classifier.Classifier(shape, classes)
    net.load_state_dict(load_file(artifact.file(WEIGHTS)))
    net.eval().requires_grad_(False)

    def classify(records: np.ndarray) -> np.ndarray:
        found = classifier.embed(net, _channels(to_display(records, data.facts)))[1]
        return found.reshape(-1, stacked.CHANNELS)

    return classify


def _train(
    data: "Dataset", real: "DataSplits", classes: int, shape: tuple[int, int, int], emit: "Emit"
) -> "Classifier":
    from genflow.data.sources import stacked
    from genflow.data.values import to_display
    from genflow.evaluation.features import classifier

    split, rows = data.splits["train"], real.training[: classifier.MAX_STEPS * classifier.BATCH]
    ids = split.ids
    labels = stacked.modes([ids[row] for row in rows]).ravel()

    def display(indices: np.ndarray) -> np.ndarray:
        stack, channel = np.divmod(indices, stacked.CHANNELS)
        shown = to_display(split.take(rows[stack]), data.facts)
        return np.take_along_axis(shown, channel[:, None, None, None], 3)

    def progress(step: int, steps: int) -> None:
        what = "training a classifier"
        emit("progress", stage="features", dataset=data.artifact.id, step=step, steps=steps, what=what)

    pictures = data.artifact.meta["source"].get("pictures", len(labels))  # datasets of older versions lack it
    steps = classifier.default_steps(pictures)  # independent of the number of stacks
    return classifier.train(display, labels, classifier.Task("labels", classes), shape, steps=steps, progress=progress)


def _channels(shown: np.ndarray) -> np.ndarray:
    """Stacks (N, H, W, 3) as single pictures (3 N, H, W, 1)."""
    return np.ascontiguousarray(shown.transpose(0, 3, 1, 2)).reshape(-1, *shown.shape[1:3], 1)


METRIC = Metric(
    measure, needs="samples", section="modes", records=ALL, order=91, applies=lambda data, options: is_stack(data)
)
