"""Decode the images or codes of a request."""

import asyncio
import base64
import io
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from genflow.data import images
from genflow.data.sources.base import ImageSummary
from genflow.families.base import has_encoder
from genflow.serving.models import Model
from genflow.serving.responses import RequestError
from genflow.serving.schemas import MAX_CODES, DecodeRequest, EncodeRequest, NearestRequest

MAX_PIXELS = 32_000_000  # all images of a request together
# The app's default threads encode answers, so slow pictures must not occupy them.
DECODERS = ThreadPoolExecutor(2, thread_name_prefix="decode")


async def parse_in_pool(
    model: Model, request: EncodeRequest | DecodeRequest | NearestRequest, deadline_s: float
) -> list[np.ndarray]:
    """Call `parse_inputs` in a thread of `DECODERS`.

    Raises:
        RequestError: as `parse_inputs`, or 503 if it takes longer than `deadline_s`.
    """
    parsing = asyncio.get_running_loop().run_in_executor(DECODERS, parse_inputs, model, request)
    try:
        async with asyncio.timeout(deadline_s):
            return await parsing
    except TimeoutError as error:
        message = "the images were not decoded before the deadline"
        raise RequestError(503, message, hint="try again later", retry_after=1) from error


def parse_inputs(model: Model, request: EncodeRequest | DecodeRequest | NearestRequest) -> list[np.ndarray]:
    """Return the images, each (H, W, C) uint8 grey levels, or the codes, each (...) float32.

    Raises:
        RequestError: the family has no encoder, or the images or codes are invalid.
    """
    if isinstance(request, NearestRequest):
        return _parse_images(model, request)
    if not has_encoder(model.family):
        raise RequestError(
            422, f"{model.family.title} has no encoder", "model", "GET /v1/models lists the models that can encode"
        )
    return _parse_images(model, request) if isinstance(request, EncodeRequest) else _parse_codes(model, request)


def _parse_images(model: Model, request: EncodeRequest | NearestRequest) -> list[np.ndarray]:
    if model.facts.is_points:
        raise RequestError(422, "this model was trained on points, not on images", "images")
    records, pixels = [], 0
    for i, text in enumerate(request.images):
        file = io.BytesIO(_decode_base64(text, "images"))
        try:
            pixels += math.prod(_read_header(file).size or (0,))
            if pixels > MAX_PIXELS:  # a huge image of one colour can be a small file
                raise RequestError(
                    422, f"the images have more than {MAX_PIXELS / 1e6:.0f} megapixels in total", "images"
                )
            records.append(images.decode_for_dataset(file, model.facts))
        except images.UnreadableImage as error:
            raise RequestError(422, f"image {i}: {error}", "images") from error
    return records


def _read_header(file: io.BytesIO) -> ImageSummary:
    try:
        return images.read_header(file)
    except Exception as error:
        raise images.UnreadableImage(images.describe_error(error, file)) from error
    finally:
        file.seek(0)


def _parse_codes(model: Model, request: DecodeRequest) -> list[np.ndarray]:
    shape = ", ".join(map(str, model.code_shape))
    malformed = RequestError(422, f"codes: expected a .npy file of float32, (N, {shape}), in base64", "codes")
    file = io.BytesIO(_decode_base64(request.codes, "codes"))
    try:  # read the header only: np.load would allocate the shape that it declares
        if np.lib.format.read_magic(file) != (1, 0):
            raise malformed
        (n, *rest), fortran, dtype = np.lib.format.read_array_header_1_0(file)
        values = np.frombuffer(file.read(), "<f4")
    except (ValueError, EOFError, TypeError) as error:
        raise malformed from error
    if dtype != np.dtype("<f4") or fortran or tuple(rest) != model.code_shape or values.size != n * math.prod(rest):
        raise malformed
    if not 1 <= n <= MAX_CODES:
        raise RequestError(422, f"codes: got {n}; the number must be between 1 and {MAX_CODES}", "codes")
    if not np.isfinite(values).all():
        raise RequestError(422, "codes: some values are NaN or infinite", "codes")
    return list(values.reshape(n, *rest))


def _decode_base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise RequestError(422, f"{field}: invalid base64", field) from error
