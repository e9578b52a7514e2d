"""Package a checkpoint as an MLflow model without pickle, with the code that draws its samples, and register it."""

import json
import shutil
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genflow.storage.manifest import MANIFEST, describe
from genflow.storage.temporary import private_folder
from genflow.tracking.journal import Cursor
from genflow.tracking.mlflow_client import Caller, MlflowRejected

MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "safetensors", "torch")
CLASSES = {"label": "double"}  # columns of a request, by MLflow's type
CAPTIONS = {"prompt": "string", "negative_prompt": "string", "guidance": "double"}


def copy_model_files(checkpoint: Path, run: Path, folder: Path) -> None:
    """Copy the code and the files for sampling to a neutral folder, because MLflow writes the path into the model."""
    shutil.copy(MODEL_CODE, folder / "model.py")
    shutil.copytree(checkpoint, folder / "checkpoint", ignore=shutil.ignore_patterns("optimizer*"))
    for name in ("recipe.yaml", "facts.json"):
        if (run / name).is_file():
            shutil.copy(run / name, folder / "checkpoint")
    for name in ("autoencoder", "text"):  # of a run on latents, and of a run that reads captions
        if (run / name).is_dir():
            shutil.copytree(run / name, folder / "checkpoint" / name)
    manifest = describe(folder / "checkpoint", "exports", run.name)  # the checkpoint's lists the optimizer's state too
    (folder / "checkpoint" / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def save_pyfunc_model(folder: Path, *, run_id: str, model_id: str) -> None:
    """Save `folder`/model, an MLflow model without pickle, from the files of `copy_model_files`."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    from genflow import text_encoders
    from genflow.data.texts import INDEX

    text = folder / "checkpoint" / "text" / INDEX
    encoder = json.loads(text.read_text(encoding="utf-8"))["encoder"] if text.is_file() else ""
    kinds = {"steps": "double", **(CAPTIONS if encoder else CLASSES)}
    optional = [ColSpec(kind, name, required=False) for name, kind in kinds.items()]  # may have missing values
    packages = (*REQUIREMENTS, *(text_encoders.packages(encoder) if encoder else ()))
    request = Schema([ColSpec("long", "n"), ColSpec("long", "seed"), *optional])
    with warnings.catch_warnings(action="ignore"):  # MLflow wants an input example, which costs seconds
        mlflow.pyfunc.save_model(
            path=str(folder / "model"),
            python_model=str(folder / "model.py"),
            artifacts={"checkpoint": str(folder / "checkpoint")},
            code_paths=[str(Path(__file__).parents[1])],
            signature=ModelSignature(request, Schema([ColSpec("long", "seed"), ColSpec("string", "png")])),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in packages],
            mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        )


def register(call: Caller, client: Any, cursor: Cursor, run: Path, checkpoint: Path, name: str, step: int) -> None:
    """Register a checkpoint as a version of a model, unless that is done. A tag of the version names the checkpoint.

    Args:
        call: sends requests.
        client: of MLflow.
        cursor: names the experiment, the run and the journal.
        run: the run's folder.
        checkpoint: its folder.
        name: of the model.
        step: of the checkpoint.
    """
    from mlflow.entities import LoggedModelOutput

    tag = {"genflow.checkpoint": f"{cursor.journal}/{checkpoint.name}"}
    try:
        call(client.create_registered_model, name)
    except MlflowRejected:  # it exists, or its name is invalid; then the next call raises
        versions = call(client.search_model_versions, f"name = '{name}'")
        if any(tag.items() <= version.tags.items() for version in versions):
            return
    query = f"tags.`genflow.checkpoint` = '{tag['genflow.checkpoint']}'"
    existing = call(client.search_logged_models, [cursor.experiment], query)
    origin = {"source_run_id": cursor.run, "tags": tag}
    model = existing[0] if existing else call(client.create_logged_model, cursor.experiment, "sampler", **origin)
    with private_folder("genflow-") as folder:
        copy_model_files(checkpoint, run, folder)
        with call.translated_errors():  # takes seconds of this machine, and none of the server
            save_pyfunc_model(folder, run_id=cursor.run, model_id=model.model_id)
        call(client.log_model_artifacts, model.model_id, f"{folder}/model")
    call(client.finalize_logged_model, model.model_id, "READY")
    with suppress(MlflowRejected):  # already logged
        call(client.log_outputs, cursor.run, [LoggedModelOutput(model.model_id, step)])
    origin = {"run_id": cursor.run, "model_id": model.model_id, "tags": tag}
    # by location: MLflow would look up "models:/ID" at its global URI, which is the current folder
    call(client.create_model_version, name, model.artifact_location, **origin)
