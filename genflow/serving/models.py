"""The metadata of a served model, read from the files of its run and evaluation without loading the weights."""

import functools
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from genflow import build, families
from genflow.data.shard_format import FACTS
from genflow.data.shards import Dataset
from genflow.data.texts import INDEX, Texts
from genflow.errors import DataError, plain
from genflow.evaluation.steps_needed import recommend
from genflow.families.base import Family, has_encoder
from genflow.recipe.files import read
from genflow.recipe.schema import Recipe, parse
from genflow.sampling.engine import AUTOENCODER, RECIPE, TEXT, picture_facts
from genflow.sampling.prompts import Prompts
from genflow.serving.model_list import ServedModel
from genflow.serving.responses import RequestError
from genflow.specs import DataSpec
from genflow.storage.manifest import read_manifest
from genflow.storage.store import MANIFEST, Artifact, Store
from genflow.training import checkpoint, checkpoint_folders

MIN_TOLERANCE = 1e-8  # of a request; recipes may have a smaller one, which ends at rk45's largest number of steps
MEMORY_FACTOR = 2.0  # memory of an engine / size of its weights file: the weights, and the activations


def local_folder(path: str) -> Path:
    """Return an artifact's folder on this machine: `path` itself, or a copy downloaded from the store's bucket."""
    folder = Path(path)
    if path and not folder.is_dir() and (store := Store()).mirror:
        artifact = store.get(folder.parent.name, folder.name)
        return artifact.path if artifact else folder
    return folder


def _artifact(folder: Path, entry: ServedModel) -> Artifact:
    """The artifact in a folder.

    Raises:
        DataError: the folder has no manifest, or a damaged one.
    """
    if (manifest := read_manifest(folder)) is None:
        raise DataError(f"model {entry.name}: {folder} contains no finished run", "genflow runs ls")
    return Artifact(folder.parent.name, folder.name, folder, manifest)


class Model:
    """The metadata of a model, its options, and their defaults.

    Raises:
        DataError: the folder contains no finished run.
    """

    def __init__(self, entry: ServedModel) -> None:
        self.entry, self.name = entry, entry.name
        folder = local_folder(entry.path)
        self.run = _artifact(folder, entry)
        newest = checkpoint_folders.of_run(self.run)
        self.step = int(checkpoint.read_state(newest)["step"])
        decoder = self.run.files(f"{AUTOENCODER}/{checkpoint.WEIGHTS}")
        weights = [newest / checkpoint.WEIGHTS, *map(self.run.file, decoder)]
        self.bytes = int(MEMORY_FACTOR * sum(file.stat().st_size for file in weights))
        self.facts = picture_facts(self.run)
        self.learned = DataSpec.from_json(self.run.file(FACTS).read_text(encoding="utf-8"))
        self.prompts = Prompts(Texts.open(self.run.file(f"{TEXT}/{INDEX}").parent)) if self.learned.text else None
        self.recipe: Recipe = parse(read(self.run.file(RECIPE)), str(folder / RECIPE))
        self.family: type[Family] = families.family_class(self.recipe.family["kind"])
        self.schema: type[BaseModel] = build.schema(self.family.sample)
        self.evaluation: dict[str, Any] = {}
        if entry.evaluation:
            measured = _artifact(local_folder(entry.evaluation), entry)
            self.evaluation = json.loads(measured.file("metrics.json").read_text(encoding="utf-8"))
        self.recommended = recommend(self.evaluation)
        options = {**self.recipe.sample, **(self.recommended or {}).get("options", {})}
        self.defaults: dict[str, Any] = self.schema.model_validate(options).model_dump(mode="json")

    @property
    def has_steps(self) -> bool:
        """Whether sampling has a choosable number of steps, which can be streamed."""
        return "steps" in self.schema.model_fields

    @property
    def can_guide(self) -> bool:
        """Whether the net knows predictions with and without its condition."""
        return bool(self.facts.classes or self.prompts) and self.recipe.family.get("forget", 1.0) > 0

    @functools.cached_property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of a code, without the batch dimension."""
        return build.family_of(self.recipe, self.learned).code_shape

    @functools.cached_property
    def dataset(self) -> Dataset | None:
        """The dataset of pictures that the run was trained on; None: it is not in the run's store, or has points."""
        folder = Path(self.entry.path).parent.parent / "datasets" / str(self.run.meta.get("dataset") or "none")
        folder = local_folder(str(folder))
        manifest = None if self.facts.is_points else read_manifest(folder)
        if manifest is None:
            return None
        return Dataset.open(Artifact("datasets", folder.name, folder, manifest))

    def options(self, values: dict[str, Any]) -> dict[str, Any]:
        """Validate a request's options and add the defaults.

        Raises:
            RequestError: the family has no such option, or its value is invalid.
        """
        known = list(self.schema.model_fields)
        try:
            options = self.schema.model_validate({**self.defaults, **values}, strict=True).model_dump(mode="json")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            key = str(first["loc"][0]) if first["loc"] else None
            if first["type"] == "extra_forbidden":
                message = f"{self.family.title} has no option {key}"
                raise RequestError(422, message, key, f"options: {', '.join(known) or 'none'}") from error
            raise RequestError(422, f"{key}: {plain(first['msg'])}", key) from error
        if values.get("tolerance", 1.0) < MIN_TOLERANCE:
            raise RequestError(422, f"tolerance: the smallest is {MIN_TOLERANCE:g}", "tolerance")
        if options.get("guidance", 1.0) != 1.0 and not self.can_guide:
            has = "classes or captions, and dropped some of them (family.forget above 0)"
            message = f"guidance needs a model that was trained with {has}"
            raise RequestError(422, message, "guidance", "use guidance=1")
        return options

    @functools.cached_property
    def card(self) -> dict[str, Any]:
        """The model's description in `GET /v1/models`. It never changes, and answers of OpenAI's format read it."""
        facts, meta = self.facts, self.run.meta
        properties = self.schema.model_json_schema().get("properties", {})
        metrics = {
            name: {key: value[key] for key in ("value", "low", "high", "n", "floor", "features") if key in value}
            for name, value in (self.evaluation.get("metrics") or {}).items()
        }
        return {
            "id": self.name,
            "object": "model",
            "owned_by": "genflow",
            "created": int(self.run.manifest.get("created", 0)),
            "family": {
                "kind": self.recipe.family["kind"],
                "title": self.family.title,
                "objective": self.family.objective,
                "steps": self.family.steps,
                "likelihood": self.family.likelihood,
            },
            "checkpoint": {"run": self.run.id, "step": self.step},
            "data": {
                "name": meta.get("dataset_name"),
                "shape": list(facts.shape),
                "levels": facts.levels,
                "points": facts.is_points,
                "classes": list(facts.class_names),
                "fingerprint": facts.fingerprint,
            },
            "abilities": {
                "steps": self.has_steps,
                "guidance": "guidance" in self.schema.model_fields and self.can_guide,
                "prompts": self.prompts is not None,
                "encode": has_encoder(self.family),
                "real": self.dataset is not None,
            },
            "options": {
                name: {key: value for key, value in field.items() if key != "title"} | {"default": self.defaults[name]}
                for name, field in properties.items()
            },
            "prompts": self.prompts and {
                "tokens": self.prompts.spec.length,
                "encoder": self.prompts.spec.encoder,
                "examples": self.prompts.captions,
            },
            "recommended": self.recommended,
            "metrics": metrics,
            "speed": self.evaluation.get("speed"),
            "recipe": self.recipe.model_dump(mode="json"),
            "lineage": {
                "run": self.run.id,
                "parents": self.run.manifest.get("parents", []),
                "evaluation": self.evaluation.get("evaluation"),
                "init": self.recipe.init or None,
                "genflow": self.run.manifest.get("genflow"),
                "manifest": MANIFEST,
            },
            "training": {key: meta.get(key) for key in ("steps", "images", "seconds", "parameters")},
        }


def find_model(models: dict[str, Model], name: str) -> Model:
    """Return the model of this name; for an empty name the first model.

    Raises:
        RequestError: there is no model of this name.
    """
    found = models.get(name or next(iter(models)))
    if found is None:
        raise RequestError(404, f"there is no model {name!r}", "model", f"models: {', '.join(models)}")
    return found
