"""An HTTP client for served models. It needs only the standard library and NumPy.

    from genflow.client import Client

    client = Client("http://127.0.0.1:8000")
    images = client.samples("pictures", n=16, seed=7)   # (16, C, H, W) uint8
    apples = client.samples("emoji", n=4, seed=7, prompt="a red apple", negative_prompt="a leaf", guidance=3.0)

For the same seed and settings, the samples equal those of `Engine.draw` and `genflow sample`.
"""

import base64
import io
import json
import os
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genflow.errors import GenflowError, ResourceError, SetupError, UsageError
from genflow.system import http
from genflow.system.documents import Json

TRIES = 4  # requests in total while the server is busy
MAX_WAIT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """A response of the server.

    Args:
        body: bytes in the requested format.
        headers: by lower-case name, with `x-genflow-checkpoint`, `-seed`, `-steps`, `-nfe` and `-seconds`; and
            `x-genflow-cut` if a prompt is cut: "16/62" means that the model reads 16 of its 62 tokens.
    """

    body: bytes
    headers: dict[str, str]


class Client:
    """The models of a server.

    Args:
        address: the server's URL, such as `http://127.0.0.1:8000`.
        key: the API key; default: GENFLOW_API_KEY.
        timeout: seconds for one request.
    """

    def __init__(self, address: str, key: str = "", timeout: float = 90.0) -> None:
        self.address = address.rstrip("/")
        self._key, self._timeout = key or os.environ.get("GENFLOW_API_KEY", ""), timeout

    def models(self) -> list[Json]:
        """The model cards, as JSON documents."""
        return list(json.loads(self._ask("/v1/models").body)["data"])

    def samples(self, model: str, **asked: Any) -> np.ndarray:
        """Draw samples: images (N, C, H, W) uint8, or 2-D points (N, 2, 1, 1) float32.

        Args:
            model: the model's name.
            asked: n, seed, steps, sampler, label, guidance, and the family's own options; of a model of captions also
                prompt (a caption, or a list of them in turn) and negative_prompt.

        Raises:
            UsageError: the request is invalid; the message names the field.
            ResourceError: the server is still busy after all retries, or its Retry-After exceeds `MAX_WAIT_S`.
            SetupError: the server cannot be reached or rejects the key.
        """
        return np.load(io.BytesIO(self.draw(model, format="npy", **asked).body), allow_pickle=False)

    def draw(self, model: str, **asked: Any) -> Answer:
        """Draw samples in the requested `format`, with the response's headers. Raises the errors of `samples`."""
        return self._ask(self._path(model, "samples"), asked)

    def walk(self, model: str, **asked: Any) -> np.ndarray:
        """Interpolate between two samples: images or points as in `samples`, from the first to the last.

        Args:
            model: the model's name.
            asked: n, seed, to_seed, and the arguments of `samples`; with prompt and to_prompt from one caption to the
                other one, for which to_seed is seed by default.

        Raises:
            UsageError, ResourceError, SetupError: as in `samples`.
        """
        body = self._ask(self._path(model, "walks"), {**asked, "format": "npy"}).body
        return np.load(io.BytesIO(body), allow_pickle=False)

    def encode(
        self, model: str, pictures: Sequence[bytes | Path], label: str | int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        """Encode image files to latent codes (N, ...) float32, which `decode` turns back into images."""
        files = [base64.b64encode(each if isinstance(each, bytes) else each.read_bytes()).decode() for each in pictures]
        asked = {"images": files, "label": label, "prompt": prompt, "format": "npy"}
        answer = self._ask(self._path(model, "encode"), asked)
        return np.load(io.BytesIO(answer.body), allow_pickle=False)

    def decode(
        self, model: str, codes: np.ndarray, label: str | int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        """Decode latent codes to images (N, C, H, W) uint8. Codes between two codes interpolate their images."""
        file = io.BytesIO()
        np.save(file, codes.astype(np.float32))
        encoded = base64.b64encode(file.getvalue()).decode()
        asked = {"codes": encoded, "label": label, "prompt": prompt, "format": "npy"}
        return np.load(io.BytesIO(self._ask(self._path(model, "decode"), asked).body), allow_pickle=False)

    def _path(self, model: str, task: str) -> str:
        return f"/v1/models/{urllib.parse.quote(model, safe='')}/{task}"

    def _ask(self, path: str, body: Json | None = None) -> Answer:
        for attempt in range(TRIES):
            try:
                return self._once(path, body)
            except _Busy as busy:
                if attempt == TRIES - 1 or busy.seconds > MAX_WAIT_S:
                    raise ResourceError(busy.message, busy.hint) from busy
                time.sleep(busy.seconds)
        raise AssertionError("unreachable")

    def _once(self, path: str, body: Json | None) -> Answer:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = http.request(self.address + path, data=data, headers=headers, timeout=self._timeout)
        except http.RequestFailed as error:
            raise SetupError(f"{self.address} cannot be reached: {error}", "genflow endpoints ls") from error
        if not answer.ok:
            raise _reason(answer)
        return Answer(answer.body, dict(answer.headers))


class _Busy(GenflowError):  # noqa: N818  not a fault of this program
    """The server is busy; `seconds` is its Retry-After."""

    seconds = 1.0


def _reason(answer: http.Response) -> GenflowError:
    """The error of a response whose status is not 2xx."""
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return GenflowError(f"{answer.url} responded with status {answer.status}")
    message, hint = error["message"], error.get("hint", "")
    if answer.status in (429, 503):
        busy = _Busy(message, hint)
        busy.seconds = float(answer.headers.get("retry-after") or 1)
        return busy
    if answer.status == 401:
        return SetupError(message, "set GENFLOW_API_KEY to the key that genflow serve showed")
    return UsageError(message, hint) if answer.status < 500 else GenflowError(message, hint)
