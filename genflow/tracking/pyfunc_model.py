"""What MLflow runs when it serves a registered model: a table of requests in, a table of pictures out.

    mlflow.pyfunc.load_model("models:/fm-digits/1").predict([{"n": 4, "seed": 0, "steps": 10}])

MLflow copies this file into the model and executes it ("models from code", so nothing is pickled); beside it
lie this package and the checkpoint.
"""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image

from genflow.errors import UsageError


class Sampler(PythonModel):
    """Draws pictures from a checkpoint."""

    def load_context(self, context: Any) -> None:
        """Load the engine from the checkpoint that lies in the model."""
        from genflow.sampling.engine import Engine

        self.engine = Engine.from_folder(Path(context.artifacts["checkpoint"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Draw the pictures that were asked for.

        Args:
            context: MLflow's; the checkpoint was loaded from it.
            model_input: one request a row: `n` pictures from the seeds `seed`, `seed` + 1, ...; optionally the
                number of `steps` and the class `label`.
            params: none are known.

        Returns:
            One picture a row: `seed`, and `png` in base64.

        Raises:
            UsageError: the model draws points of the plane, or a request is wrong.
        """
        levels = self.engine.facts.levels
        if levels is None:
            raise UsageError("this model draws points of the plane, which are no pictures", "genflow sample RUN")
        rows = []
        for request in model_input.to_dict("records"):
            given = {key: int(value) for key, value in request.items() if pd.notna(value)}
            seeds = range(given.get("seed", 0), given.get("seed", 0) + given["n"])
            labels = [given["label"]] * len(seeds) if "label" in given else None
            options: dict[str, Any] = {"steps": given["steps"]} if "steps" in given else {}
            drawn = self.engine.draw(seeds, labels=labels, **options)
            pictures = (drawn.images.astype(np.uint32) * 255 // (levels - 1)).astype(np.uint8)
            rows += [{"seed": seed, "png": _png(picture)} for seed, picture in zip(seeds, pictures, strict=True)]
        return pd.DataFrame(rows, columns=["seed", "png"])


def _png(picture: np.ndarray) -> str:
    """A picture (H, W, C) of bytes as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


set_model(Sampler())
