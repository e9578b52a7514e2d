"""What a request brings along: picture files, and codes."""

import base64
import io
import math

import numpy as np

from genflow.data import images
from genflow.data.sources.base import ImageSummary
from genflow.families.base import has_encoder
from genflow.serving.models import Model
from genflow.serving.responses import RequestError
from genflow.serving.schemas import MOST_CODES, DecodeRequest, EncodeRequest

MOST_PIXELS = 32_000_000  # of all the pictures of a request


def given(model: Model, asked: EncodeRequest | DecodeRequest) -> list[np.ndarray]:
    """One picture (H, W, C) uint8 of grey levels, or one code (...) float32, for each that was sent.

    Raises:
        Refused: the family has no encoder, or these are no pictures, or no codes of it.
    """
    if not has_encoder(model.family):
        raise RequestError(422, f"{model.family.title} has no encoder", "model", "GET /v1/models says which can encode")
    return _pictures(model, asked) if isinstance(asked, EncodeRequest) else _codes(model, asked)


def _pictures(model: Model, asked: EncodeRequest) -> list[np.ndarray]:
    if model.facts.is_points:
        raise RequestError(422, "points of the plane are no pictures", "images")
    found, pixels = [], 0
    for i, text in enumerate(asked.images):
        file = io.BytesIO(_bytes(text, "images"))
        try:
            pixels += math.prod(_header(file).size or (0,))
            if pixels > MOST_PIXELS:  # a picture of one colour is a small file, however large it is
                raise RequestError(422, f"pictures of more than {MOST_PIXELS / 1e6:.0f} megapixels in all", "images")
            found.append(images.decode_for_dataset(file, model.facts))
        except images.UnreadableImage as error:
            raise RequestError(422, f"picture {i}: {error}", "images") from error
    return found


def _header(file: io.BytesIO) -> ImageSummary:
    try:
        return images.read_header(file)
    except Exception as error:
        raise images.UnreadableImage(images.describe_error(error, file)) from error
    finally:
        file.seek(0)


def _codes(model: Model, asked: DecodeRequest) -> list[np.ndarray]:
    shape = ", ".join(map(str, model.code_shape))
    wrong = RequestError(422, f"codes: a .npy file of float32, (N, {shape}), in base64", "codes")
    file = io.BytesIO(_bytes(asked.codes, "codes"))
    try:  # the header alone: NumPy would set aside what it promises
        if np.lib.format.read_magic(file) != (1, 0):
            raise wrong
        (n, *rest), fortran, dtype = np.lib.format.read_array_header_1_0(file)
        held = np.frombuffer(file.read(), "<f4")
    except (ValueError, EOFError, TypeError) as error:
        raise wrong from error
    if dtype != np.dtype("<f4") or fortran or tuple(rest) != model.code_shape or held.size != n * math.prod(rest):
        raise wrong
    if not 1 <= n <= MOST_CODES:
        raise RequestError(422, f"codes: {n} codes; between 1 and {MOST_CODES} are decoded", "codes")
    if not np.isfinite(held).all():
        raise RequestError(422, "codes: some are no numbers", "codes")
    return list(held.reshape(n, *rest))


def _bytes(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise RequestError(422, f"{field}: this is no base64", field) from error
