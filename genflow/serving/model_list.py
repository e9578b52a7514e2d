"""The models of a deployment, as they are written down. Without torch: the command needs no more."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from genflow.storage.store import Artifact, Store
from genflow.system.source_hash import digest


@dataclass(frozen=True)
class ServedModel:
    """A model to serve, as it is written in a deployment.

    Args:
        name: in addresses.
        run: the run's id.
        path: the run's folder, seen by every replica.
        evaluation: the folder of its newest evaluation; empty: none.
    """

    name: str
    run: str
    path: str
    evaluation: str = ""


def served_models(store: Store, runs: Sequence[Artifact], names: Sequence[str] = ()) -> list[ServedModel]:
    """The runs as models, each with its newest evaluation; two of one name are told apart by their ids."""
    models: list[ServedModel] = []
    for index, run in enumerate(runs):
        name = names[index] if index < len(names) else run.name
        if name in [model.name for model in models]:
            name = run.id
        evaluations = [artifact for artifact in store.artifacts("evaluations") if artifact.meta.get("run") == run.id]
        models.append(ServedModel(name, run.id, str(run.path), str(evaluations[-1].path) if evaluations else ""))
    return models


def to_documents(models: Sequence[ServedModel]) -> list[dict[str, str]]:
    """Entries as a deployment's configuration holds them."""
    return [asdict(model) for model in models]


def list_version(models: Sequence[ServedModel]) -> str:
    """What distinguishes one deployed list from another."""
    return digest(to_documents(models))
