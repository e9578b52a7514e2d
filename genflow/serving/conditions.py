"""What the samples of a request are conditioned on: a class for each, or captions for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from genflow.errors import GenflowError, UsageError
from genflow.serving.responses import RequestError
from genflow.serving.schemas import DecodeRequest, EncodeRequest, ModelRequest, SampleRequest, WalkRequest

if TYPE_CHECKING:  # imports torch, which the engine process imports when it needs it
    from genflow.serving.models import Model


class Words(NamedTuple):
    """The captions of one sample.

    Args:
        prompt: the caption; "" is no condition.
        negative: what guidance leads away from.
        toward: the caption at the end of a walk.
        share: of the way from `prompt` to `toward`.
    """

    prompt: str
    negative: str = ""
    toward: str = ""
    share: float = 0.0


Condition = int | Words  # a class index, or captions


@dataclass(frozen=True)
class CheckedRequest:
    """A valid request, with everything that follows from the model.

    Args:
        model: that draws.
        request: as it came.
        options: all options of the family's `sample`.
        conditions: (N,) one for each sample.
        cut: tokens of the longest prompt that is longer than the model reads; 0: none is.
    """

    model: "Model"
    request: ModelRequest
    options: dict[str, Any]
    conditions: Sequence[Condition]
    cut: int = 0


def conditions_of(model: "Model", request: ModelRequest, n: int, options: dict[str, Any]) -> Sequence[Condition]:
    """The condition of each of n samples.

    Raises:
        RequestError: a prompt for a model of classes, a class for a model of captions, or an unknown class.
    """
    return _classes(model, request, n) if model.prompts is None else _words(model, request, n, options)


def grid_columns(checked: CheckedRequest) -> int | None:
    """Columns of a grid of samples, as `genflow sample` arranges them; None: as their number and classes decide."""
    if checked.model.prompts is None or not isinstance(checked.request, SampleRequest):
        return None
    from genflow.sampling.prompts import in_turn

    n = checked.request.n
    return in_turn(_prompts(checked.model, checked.request, n), n)[1]


def check_words(model: "Model", words: Sequence[Words]) -> int:
    """Check that the text encoder can read the words, and count the tokens of those that are cut.

    Returns:
        The tokens of the longest prompt that is longer than the model reads; 0: none is.

    Raises:
        RequestError: the text encoder is not on this machine, or is another than the run's.
    """
    assert model.prompts is not None
    try:
        cut = model.prompts.cut([text for each in words for text in (each.prompt, each.negative, each.toward)])
    except GenflowError as error:
        known = "captions that GET /v1/models shows need no text encoder"
        raise RequestError(400, error.message, "prompt", f"{error.hint}; {known}" if error.hint else known) from error
    return max(cut.values(), default=0)


def _classes(model: "Model", request: ModelRequest, n: int) -> list[int]:
    from genflow.sampling.engine import labels_for

    names = model.facts.class_names
    for field in ("prompt", "to_prompt", "negative_prompt"):
        if getattr(request, field, None):
            has = "classes, not captions" if names else "no captions"
            classes = ", ".join(f"{i}={name}" for i, name in enumerate(names[:20]))
            hint = f"use label; classes: {classes}" if names else f"omit {field}"
            raise RequestError(400, f"{field}: this model has {has}", field, hint)
    label = "none" if request.label is None else str(request.label)
    if label == "all" and not isinstance(request, SampleRequest):
        raise RequestError(422, "label=all is for samples only", "label", "name one class, or omit the label")
    try:
        return labels_for(label, n, model.facts) or [model.facts.classes] * n
    except UsageError as error:
        raise RequestError(422, error.message, "label", error.hint) from error


def _words(model: "Model", request: ModelRequest, n: int, options: dict[str, Any]) -> list[Words]:
    from genflow.sampling.prompts import in_turn

    if request.label not in ("all", "none", None):
        raise RequestError(400, "label: this model has captions, not classes", "label", f"use prompt: {request.label}")
    if isinstance(request, EncodeRequest | DecodeRequest):
        return [Words(request.prompt or "")] * n
    negative = request.negative_prompt or ""
    if negative and options.get("guidance", 1.0) == 1.0:
        raise RequestError(400, "negative_prompt: it needs guidance above 1", "negative_prompt", "add guidance=3")
    if isinstance(request, WalkRequest):
        prompt, toward = request.prompt or "", request.to_prompt
        if toward is None:
            return [Words(prompt, negative)] * n
        return [Words(prompt, negative, toward, i / (n - 1)) for i in range(n)]
    prompts, _ = in_turn(_prompts(model, request, n), n)
    return [Words(prompt, negative) for prompt in prompts]


def _prompts(model: "Model", request: SampleRequest, n: int) -> list[str]:
    """The prompts that a request names, or captions of held-out rows."""
    assert model.prompts is not None
    if request.prompt is None:
        return model.prompts.examples(n)
    if isinstance(request.prompt, str):
        return [request.prompt]
    if len(request.prompt) > n:
        raise RequestError(400, f"prompt: {len(request.prompt)} prompts for {n} samples", "prompt", "raise n")
    return request.prompt
