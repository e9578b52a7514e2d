"""What may be asked, typed. A model's own options (`temperature`, `spacing` ...) ride along as further keys: their
schema is the signature of its family's `sample`, which the replica knows.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SAMPLES = 1024  # a request
MAX_EVALUATIONS = 20_000  # samples x steps of a request
STREAM_FRAMES = 64  # intermediate pictures of a stream

Task = Literal["samples", "walks", "encode", "decode"]
MAX_CODES = 64  # of a request

Base64 = Annotated[str, Field(max_length=1 << 20)]
Format = Literal["png", "webp", "json", "npy"]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Label = Annotated[str, Field(max_length=200)] | Annotated[int, Field(ge=0, lt=2**31)] | None


class _BaseRequest(BaseModel):
    """What all requests have."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    seed: Seed = Field(0, description="Seed of the first sample; the next has seed + 1.")
    format: Format = Field("png", description="`json` holds each picture as base64 PNG; `npy` is (N, C, H, W) uint8.")
    layout: Literal["grid", "single"] = Field("grid", description="`single`: one bare picture, for n = 1.")

    def options(self) -> dict[str, Any]:
        """The options of the family's `sample` that were given."""
        return {}


class _SamplingRequest(_BaseRequest):
    """What is asked of sampling."""

    model_config = ConfigDict(extra="allow")

    steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Sampling steps; by default what the run's own measurements recommend."
    )
    sampler: Annotated[str, Field(max_length=40)] | None = Field(None, description="Such as `ab2`, `heun`, `ddim`.")
    guidance: Annotated[float, Field(ge=0, le=20)] | None = Field(None, description="1 is none.")

    def options(self) -> dict[str, Any]:
        """See `_Asked`."""
        named = {"steps": self.steps, "sampler": self.sampler, "guidance": self.guidance}
        return {**{key: value for key, value in named.items() if value is not None}, **(self.model_extra or {})}


class SampleRequest(_SamplingRequest):
    """Samples of a model."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"n": 16, "seed": 7}, {"n": 4, "seed": 7, "label": "3", "format": "json"}]}
    )

    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = Field(1, description="How many.")
    label: Label = Field("all", description="A class by name or number; `all`: each in turn; `none` or null.")


class WalkRequest(_SamplingRequest):
    """A walk from one seed's noise to another's, on the great circle between them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"n": 8, "seed": 1, "to_seed": 2, "label": "3"}]})

    n: Annotated[int, Field(ge=2, le=256)] = Field(8, description="How many samples, both ends among them.")
    to_seed: Seed = Field(1, description="Where the walk ends.")
    label: Label = Field(None, description="One class for all of them; null: none.")


class EncodeRequest(_BaseRequest):
    """The codes of pictures, from which the model can make them again."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"images": ["iVBORw0KGgo..."], "label": "3"}]})

    images: Annotated[list[Base64], Field(min_length=1, max_length=MAX_CODES)] = Field(
        description="Picture files (PNG, JPEG, WebP ...) in base64; they are brought to the model's size and colours."
    )
    label: Label = Field(None, description="The class of all of them; null: none.")
    format: Literal["json", "npy"] = Field("json", description="`npy`: (N, ...) float32; `json` holds that in base64.")

    @property
    def n(self) -> int:
        """How many."""
        return len(self.images)


class DecodeRequest(_BaseRequest):
    """The pictures of codes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"codes": "k05VTVBZ...", "label": "3"}]})

    codes: Base64 = Field(description="What `encode` answered as `codes`: a .npy file in base64, (N, ...) float32.")
    label: Label = Field(None, description="The class of all of them; null: none.")


ModelRequest = SampleRequest | WalkRequest | EncodeRequest | DecodeRequest


class ImagesRequest(BaseModel):
    """The shape of OpenAI's `images/generations`: the prompt is a class's name."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"prompt": "3", "n": 2, "response_format": "b64_json"}]},
    )

    prompt: Annotated[str, Field(max_length=200)] = Field("", description="A class; empty: each in turn.")
    model: Annotated[str, Field(max_length=200)] | None = Field(None, description="By default the first one.")
    n: Annotated[int, Field(ge=1, le=64)] = 1
    size: Annotated[str, Field(max_length=20)] = Field("auto", description="`auto`, or the model's own, as `28x28`.")
    seed: Seed = 0
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=20)] | None = None
    response_format: Literal["b64_json"] = "b64_json"
