"""The request bodies.

The options of a model's family (`temperature`, `spacing` ...) are extra keys. `models.Model` validates them with a
schema made from the signature of the family's `sample`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_SAMPLES = 1024  # per request
MAX_EVALUATIONS = 20_000  # samples x steps per request
STREAM_FRAMES = 64  # intermediate states in a stream, approximately

Task = Literal["samples", "walks", "encode", "decode", "real", "nearest"]
MAX_CODES = 64  # per request
MAX_PROMPT = 4000  # characters, as in OpenAI's format
PROMPTS = ("prompt", "to_prompt", "negative_prompt")  # an invalid value of these gets status 400, as OpenAI's API does
OTHER_NAMES = {"guidance_scale": "guidance", "num_inference_steps": "steps"}  # those of diffusers and its servers
_BOTH_NAMES = {*OTHER_NAMES, *OTHER_NAMES.values()}

Base64 = Annotated[str, Field(max_length=1 << 20)]
Format = Literal["png", "webp", "json", "npy"]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Label = Annotated[str, Field(max_length=200)] | Annotated[int, Field(ge=0, lt=2**31)] | None


def _without_nulls(values: Any, keep: str = "") -> Any:
    """Remove null fields, because many clients send each optional field as null."""
    if not isinstance(values, dict):
        return values
    return {key: value for key, value in values.items() if value is not None or key == keep}


def _renamed(values: Any) -> Any:
    """Give fields with names of other servers the names of these.

    Raises:
        ValueError: a field is there under both names.
    """
    if not isinstance(values, dict):
        return values
    values = {key: value for key, value in values.items() if value is not None or key not in _BOTH_NAMES}
    for other, own in OTHER_NAMES.items():
        if other in values and own in values:
            raise ValueError(f"{other} is another name of {own}: send one of them")
    return {OTHER_NAMES.get(key, key): value for key, value in values.items()}


class _BaseRequest(BaseModel):
    """Fields of every request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    seed: Seed = Field(0, description="Seed of the first sample; the next has seed + 1.")
    format: Format = Field("png", description="`json`: each image as base64 PNG; `npy`: (N, C, H, W) uint8.")
    layout: Literal["grid", "single"] = Field(
        "grid", description="`grid`: all samples in one image; `single`: the sample itself, for n = 1."
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        return _without_nulls(values, keep="label")  # a null label means no class

    def options(self) -> dict[str, Any]:
        """Return the options of the family's `sample` that the request sets."""
        return {}


class _SamplingRequest(_BaseRequest):
    """Fields of requests that sample."""

    model_config = ConfigDict(extra="allow")

    steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None,
        description="Sampling steps; by default the number that the run's evaluation recommends. "
        "`num_inference_steps` is another name.",
    )
    sampler: Annotated[str, Field(max_length=40)] | None = Field(None, description="For example `ab2`, `heun`, `ddim`.")
    guidance: Annotated[float, Field(ge=0, le=20)] | None = Field(
        None, description="Guidance scale; 1 means no guidance. `guidance_scale` is another name."
    )
    negative_prompt: Prompt | None = Field(
        None, description="For models of captions: words that guidance leads away from. It needs guidance above 1."
    )

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: Any) -> Any:
        return _renamed(values)

    def options(self) -> dict[str, Any]:
        """See `_BaseRequest`."""
        named = {"steps": self.steps, "sampler": self.sampler, "guidance": self.guidance}
        return {**{key: value for key, value in named.items() if value is not None}, **(self.model_extra or {})}


class SampleRequest(_SamplingRequest):
    """Draw samples from a model."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"n": 16, "seed": 7}, {"n": 4, "seed": 7, "label": "3", "format": "json"},
            {"n": 4, "seed": 7, "prompt": "a red apple", "negative_prompt": "a leaf", "guidance": 3}]}
    )  # fmt: skip

    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = Field(1, description="Number of samples.")
    label: Label = Field(
        "all", description="A class by name or index; `all`: each class in turn; `none` or null: no class."
    )
    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_SAMPLES)] | None = Field(
        None,
        description="For models of captions: the caption, or a list of captions in turn; by default captions of "
        "held-out rows in turn; an empty one means no condition.",
    )

    @model_validator(mode="before")
    @classmethod
    def _count_prompts(cls, values: Any) -> Any:
        """Without `n`, each prompt of a list gets one sample."""
        if isinstance(values, dict) and isinstance(prompts := values.get("prompt"), list) and values.get("n") is None:
            return {**values, "n": max(1, len(prompts))}
        return values


class WalkRequest(_SamplingRequest):
    """Interpolate between the noises of two seeds, on the great circle between them (slerp), or between two prompts."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"n": 8, "seed": 1, "to_seed": 2, "label": "3"},
            {"n": 8, "seed": 1, "prompt": "a red apple", "to_prompt": "a tiger"}]}
    )  # fmt: skip

    n: Annotated[int, Field(ge=2, le=256)] = Field(8, description="Number of samples, including both ends.")
    to_seed: Seed = Field(1, description="Seed of the last sample; with `to_prompt`, `seed` by default.")
    label: Label = Field(None, description="The class of all samples; null: no class.")
    prompt: Prompt | None = Field(None, description="For models of captions: the caption of the first sample.")
    to_prompt: Prompt | None = Field(None, description="The caption of the last sample; by default `prompt`.")

    @model_validator(mode="before")
    @classmethod
    def _keep_seed(cls, values: Any) -> Any:
        """Between two prompts the seed stays the same, unless the request names another."""
        if isinstance(values, dict) and values.get("to_prompt") is not None and values.get("to_seed") is None:
            return {**values, "to_seed": values.get("seed") or 0}
        return values


class EncodeRequest(_BaseRequest):
    """Encode images into codes, from which the model can reconstruct them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"images": ["iVBORw0KGgo..."], "label": "3"}]})

    images: Annotated[list[Base64], Field(min_length=1, max_length=MAX_CODES)] = Field(
        description="Image files (PNG, JPEG, WebP ...) in base64; they are converted to the model's size and colours."
    )
    label: Label = Field(None, description="The class of all images; null: no class.")
    prompt: Prompt | None = Field(None, description="For models of captions: the caption of all images.")
    format: Literal["json", "npy"] = Field(
        "json", description="`npy`: (N, ...) float32; `json`: the same file in base64."
    )

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.images)


class DecodeRequest(_BaseRequest):
    """Decode codes into images."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"codes": "k05VTVBZ...", "label": "3"}]})

    codes: Base64 = Field(description="The `codes` that `encode` returns: a .npy file in base64, (N, ...) float32.")
    label: Label = Field(None, description="The class of all images; null: no class.")
    prompt: Prompt | None = Field(None, description="For models of captions: the caption of all images.")


ModelRequest = SampleRequest | WalkRequest | EncodeRequest | DecodeRequest


class RealRequest(BaseModel):
    """Real pictures of the model's dataset."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"n": 8, "label": "3"}]})

    n: Annotated[int, Field(ge=1, le=64)] = Field(16, description="Number of pictures.")
    seed: Seed = Field(0, description="Chooses the pictures.")
    label: Label = Field("all", description="A class by name or index; `all`: each in turn; `none` or null: any.")


class NearestRequest(BaseModel):
    """The training pictures that are nearest to a picture."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"images": ["iVBOR..."]}]})

    images: Annotated[list[Base64], Field(min_length=1, max_length=1)] = Field(
        description="One image file in base64; it is converted to the model's size and colours."
    )
    n: Annotated[int, Field(ge=1, le=64)] = Field(8, description="Number of pictures.")


PictureRequest = RealRequest | NearestRequest


class ImagesRequest(BaseModel):
    """The request format of OpenAI's `images/generations`. Fields that it does not name have no effect."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"prompt": "3", "n": 2, "response_format": "b64_json"}]},
    )

    prompt: Prompt = Field(
        "", description="The caption or, for models of classes, a class; empty: held-out captions or classes in turn."
    )
    model: Annotated[str, Field(max_length=200)] | None = Field(None, description="By default the first model.")
    n: Annotated[int, Field(ge=1, le=64)] = 1
    size: Annotated[str, Field(max_length=20)] = Field(
        "auto", description="`auto`, or the size of the model's images, for example `28x28`."
    )
    seed: Seed = 0
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=20)] | None = None
    negative_prompt: Prompt | None = None
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    stream: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, values: Any) -> Any:
        return _renamed(_without_nulls(values))
