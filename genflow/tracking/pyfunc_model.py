"""The code that MLflow runs for a registered model. Input: a table of requests. Output: a table of images.

    mlflow.pyfunc.load_model("models:/fm-digits/1").predict([{"n": 4, "seed": 0, "steps": 10}])
    mlflow.pyfunc.load_model("models:/fm-emoji/1").predict([{"n": 4, "seed": 0, "prompt": "a red apple"}])

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
                of `steps` and the class `label`. A model of captions reads `prompt`, `negative_prompt` and `guidance`;
                without a prompt it draws captions of held-out rows.
            params: unused.

        Returns:
            One image per row: its `seed`, and `png` in base64.

        Raises:
            UsageError: the model draws 2-D points, a request is invalid, or a prompt needs a text encoder that is not
                on this machine.
        """
        levels = self.engine.facts.levels
        if levels is None:
            raise UsageError("this model draws 2-D points, not images", "genflow sample RUN")
        rows = []
        for request in model_input.to_dict("records"):
            given = {key: value for key, value in request.items() if pd.notna(value)}
            first, n = int(given.get("seed", 0)), int(given["n"])
            seeds = range(first, first + n)
            drawn = self.engine.draw(seeds, **self._condition(given, n), **_options(given))
            images = (drawn.images.astype(np.uint32) * 255 // (levels - 1)).astype(np.uint8)
            rows += [{"seed": seed, "png": _png(image)} for seed, image in zip(seeds, images, strict=True)]
        return pd.DataFrame(rows, columns=["seed", "png"])

    def _condition(self, given: dict[str, Any], n: int) -> dict[str, Any]:
        """The arguments of `Engine.draw` for the labels or the captions of n images."""
        if self.engine.prompts is None:
            unknown = {"prompts": [given["prompt"]] * n} if given.get("prompt") else {}  # `draw` refuses prompts
            return {"labels": [int(given["label"])] * n if "label" in given else None, **unknown}
        prompts = [str(given["prompt"])] * n if "prompt" in given else self.engine.prompts.examples(n)
        return {"prompts": prompts, "negative": str(given.get("negative_prompt", ""))}


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The sampling options of a request."""
    kinds: dict[str, type] = {"steps": int, "guidance": float}
    return {name: kind(given[name]) for name, kind in kinds.items() if name in given}


def _png(image: np.ndarray) -> str:
    """An image (H, W, C) uint8 as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


set_model(Sampler())
