"""Package a checkpoint as an MLflow model without pickle, with the code that draws its samples."""

import json
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path

from genflow.storage.manifest import MANIFEST, describe

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
