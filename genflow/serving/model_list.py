"""The models of an endpoint, as the configuration stores them. Imports no torch, to keep the command fast."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from genflow.storage.store import Artifact, Store
from genflow.system.source_hash import digest


@dataclass(frozen=True)
class ServedModel:
    """A model to serve.

    Args:
        name: the model's name in URLs.
        run: the run's id.
        path: the run's folder; every replica must see it.
        evaluation: the folder of the run's newest evaluation; empty: none.
    """

    name: str
    run: str
    path: str
    evaluation: str = ""


def served_models(store: Store, runs: Sequence[Artifact], names: Sequence[str] = ()) -> list[ServedModel]:
    """Return the runs as models, each with its newest evaluation.

    The second of two models with the same name is called by its run's id.
    """
    models: list[ServedModel] = []
    for index, run in enumerate(runs):
        name = names[index] if index < len(names) else run.name
        if name in [model.name for model in models]:
            name = run.id
        evaluations = [artifact for artifact in store.artifacts("evaluations") if artifact.meta.get("run") == run.id]
        models.append(ServedModel(name, run.id, str(run.path), str(evaluations[-1].path) if evaluations else ""))
    return models


def to_documents(models: Sequence[ServedModel]) -> list[dict[str, str]]:
    """Return the models as the configuration stores them."""
    return [asdict(model) for model in models]


def list_version(models: Sequence[ServedModel]) -> str:
    """Return the version of a list of models: a digest of its content."""
    return digest(to_documents(models))
