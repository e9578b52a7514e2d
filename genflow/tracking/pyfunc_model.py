"""The code that MLflow runs for a registered model. Input: a table of requests. Output: a table of images.

    mlflow.pyfunc.load_model("models:/fm-digits/1").predict([{"n": 4, "seed": 0, "steps": 10}])

MLflow copies this file into the model and executes it ("models from code", so nothing is pickled). The model also
contains this package and the checkpoint.
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
    """Draws images from a checkpoint."""

    def load_context(self, context: Any) -> None:
        """Load the engine from the model's checkpoint."""
        from genflow.sampling.engine import Engine
        from genflow.system import devices

        self.engine = Engine.from_folder(Path(context.artifacts["checkpoint"]), device=devices.choose())

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Draw the requested images.

        Args:
            context: unused; `load_context` has loaded the checkpoint.
            model_input: one request per row: `n` images from the seeds `seed`, `seed` + 1, ...; optionally the number
                of `steps` and the class `label`.
            params: unused.

        Returns:
            One image per row: its `seed`, and `png` in base64.

        Raises:
            UsageError: the model draws 2-D points, or a request is invalid.
        """
        levels = self.engine.facts.levels
        if levels is None:
            raise UsageError("this model draws 2-D points, not images", "genflow sample RUN")
        rows = []
        for request in model_input.to_dict("records"):
            given = {key: int(value) for key, value in request.items() if pd.notna(value)}
            seeds = range(given.get("seed", 0), given.get("seed", 0) + given["n"])
            labels = [given["label"]] * len(seeds) if "label" in given else None
            options: dict[str, Any] = {"steps": given["steps"]} if "steps" in given else {}
            drawn = self.engine.draw(seeds, labels=labels, **options)
            images = (drawn.images.astype(np.uint32) * 255 // (levels - 1)).astype(np.uint8)
            rows += [{"seed": seed, "png": _png(image)} for seed, image in zip(seeds, images, strict=True)]
        return pd.DataFrame(rows, columns=["seed", "png"])


def _png(image: np.ndarray) -> str:
    """An image (H, W, C) uint8 as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


set_model(Sampler())
