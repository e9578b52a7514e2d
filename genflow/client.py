"""A small client of a served model: standard library and NumPy.

    from genflow.client import Client

    client = Client("http://127.0.0.1:8000")
    pictures = client.samples("pictures", n=16, seed=7)   # (16, C, H, W) uint8

The samples are those that `Engine.draw` and `genflow sample` give for the same seed and settings.
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

Document = dict[str, Any]
TRIES = 4  # where the server says that it is busy
MAX_WAIT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """Bytes, and what the server says of them.

    Args:
        body: in the format that was asked for.
        headers: names in lower letters; `x-genflow-checkpoint`, `-seed`, `-steps`, `-nfe`, `-seconds`.
    """

    body: bytes
    headers: dict[str, str]


class Client:
    """Models at an address.

    Args:
        address: such as `http://127.0.0.1:8000`.
        key: the API key; by default that of GENFLOW_API_KEY.
        timeout: seconds for one request.
    """

    def __init__(self, address: str, key: str = "", timeout: float = 90.0) -> None:
        self.address = address.rstrip("/")
        self._key, self._timeout = key or os.environ.get("GENFLOW_API_KEY", ""), timeout

    def models(self) -> list[Document]:
        """The models' cards."""
        return list(json.loads(self._ask("/v1/models").body)["data"])

    def samples(self, model: str, **asked: Any) -> np.ndarray:
        """Samples as (N, C, H, W) uint8, or (N, 2, 1, 1) float32 for points of the plane.

        Args:
            model: its name.
            asked: n, seed, steps, sampler, label, guidance, and the family's own options.

        Raises:
            UsageError: the request is wrong; the message names the field.
            ResourceError: the server is busy, also after waiting as long as it asked for.
            SetupError: the server cannot be reached, or asks for another key.
        """
        return np.load(io.BytesIO(self.draw(model, format="npy", **asked).body), allow_pickle=False)

    def draw(self, model: str, **asked: Any) -> Answer:
        """Samples in the `format` that is asked for, and what the server says of them; raises as `samples` does."""
        return self._ask(self._path(model, "samples"), asked)

    def encode(self, model: str, pictures: Sequence[bytes | Path], label: str | int | None = None) -> np.ndarray:
        """The codes (N, ...) float32 of picture files, of which `decode` makes them again."""
        files = [base64.b64encode(each if isinstance(each, bytes) else each.read_bytes()).decode() for each in pictures]
        answer = self._ask(self._path(model, "encode"), {"images": files, "label": label, "format": "npy"})
        return np.load(io.BytesIO(answer.body), allow_pickle=False)

    def decode(self, model: str, codes: np.ndarray, label: str | int | None = None) -> np.ndarray:
        """The pictures (N, C, H, W) uint8 of codes; between two codes lie the pictures between two pictures."""
        file = io.BytesIO()
        np.save(file, codes.astype(np.float32))
        asked = {"codes": base64.b64encode(file.getvalue()).decode(), "label": label, "format": "npy"}
        return np.load(io.BytesIO(self._ask(self._path(model, "decode"), asked).body), allow_pickle=False)

    def _path(self, model: str, task: str) -> str:
        return f"/v1/models/{urllib.parse.quote(model, safe='')}/{task}"

    def _ask(self, path: str, body: Document | None = None) -> Answer:
        for attempt in range(TRIES):
            try:
                return self._once(path, body)
            except _Busy as busy:
                if attempt == TRIES - 1 or busy.seconds > MAX_WAIT_S:
                    raise ResourceError(busy.message, busy.hint) from busy
                time.sleep(busy.seconds)
        raise AssertionError("unreachable")

    def _once(self, path: str, body: Document | None) -> Answer:
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


class _Busy(GenflowError):  # noqa: N818  said of a server
    """The server asks for patience."""

    seconds = 1.0


def _reason(answer: http.Response) -> GenflowError:
    """What a refusal says, as one of genflow's own errors."""
    try:
        said = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return GenflowError(f"{answer.url} answered {answer.status}")
    message, hint = said["message"], said.get("hint", "")
    if answer.status in (429, 503):
        busy = _Busy(message, hint)
        busy.seconds = float(answer.headers.get("retry-after") or 1)
        return busy
    if answer.status == 401:
        return SetupError(message, "set GENFLOW_API_KEY to the key that genflow serve showed")
    return UsageError(message, hint) if answer.status < 500 else GenflowError(message, hint)
