"""What finished jobs answered, so that a repeated command needs neither PyTorch nor another process.

    answers/<hash>.json      {code, store, known, result}; the hash is of the job, its document and its inputs' ids

The result of a stage is a function of its document, of the artifacts that it needs, and of the code. So an answer
counts while the code of genflow is the same to the byte, the store is at its place, and every artifact that the answer
names is intact. In every other case there is no answer, and the job itself decides; an answer makes no identity.

Not remembered are a stage that reads files outside of the store (`Stage.outside`), a run that is to begin from scratch,
and results in a bucket, where looking at every file would download it. A stage with `Stage.found` answers itself.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genflow.errors import GenflowError
from genflow.pipeline.graph import load
from genflow.pipeline.stages import Stage, declared, function, look_up
from genflow.recipe.schema import Recipe
from genflow.storage.artifact import JOURNALED, Artifact
from genflow.storage.files import write_atomically
from genflow.storage.store import Store
from genflow.system.documents import Json
from genflow.system.source_hash import digest, fingerprint
from genflow.tracking import sync

FOLDER = "answers"
PIPELINE = "pipeline"  # the job that runs several stages
SHARDS = ".arrow"  # rows, which are compared with the manifest when they are read
NOTHING = ("", "none")  # references to no artifact
SPOKEN = ("announce",)  # inputs that decide only what a job prints

Emit = Callable[[Json], None]


def find(job: str, document: Json, store: Store, emit: Emit) -> Json | None:
    """The result of a job whose artifacts all exist; None if that is unknown here, so that the job must run.

    Args:
        job: name of the program in `jobs/`.
        document: of the job.
        store: holds the artifacts.
        emit: receives the events of a pipeline's stages.

    Returns:
        What the job would return, with `cached` true.
    """
    if store.mirror:
        return None
    seen: set[tuple[str, str]] = set()
    if job != PIPELINE:
        result = of_stage(store, job, document, seen)
        stage = declared().get(job)
        if result and stage and stage.folder in JOURNALED and sync.is_behind(store, str(look_up(result, stage.makes))):
            return None  # the job sends the rest to MLflow
        return result
    pipeline = load(document["pipeline"], str(document["pipeline"].get("name", job)), document.get("overrides"))
    made: dict[str, Json] = {}
    for node in pipeline.stages:
        with contextlib.suppress(GenflowError):
            if found := of_stage(store, node.job, node.document(made), seen):
                made[node.name] = found
        if node.name not in made:
            return None
    emit({"event": "stages", "total": len(made)})
    for node in pipeline.stages:
        if node.stage.folder == "datasets" and (dataset := store.get("datasets", made[node.name][node.stage.makes])):
            store.record_name(dataset)
        emit({"event": "stage", "name": node.name, "job": node.job, "status": "cached", "document": made[node.name]})
    stages = [{"stage": node.name, "job": node.job, **made[node.name]} for node in pipeline.stages]
    return {"schema": "genflow.run/1", "pipeline": pipeline.name, "cached": True, "stages": stages}


def of_stage(store: Store, job: str, document: Json, seen: set[tuple[str, str]] | None = None) -> Json | None:
    """The result of one stage if its artifacts exist and are intact; None if that is unknown here.

    Args:
        store: holds the artifacts.
        job: name of the program.
        document: of the job.
        seen: (kind, id) of artifacts that were found intact; this adds those that it checks.
    """
    stage = declared().get(job)
    if stage is None or store.mirror:
        return None
    seen = set() if seen is None else seen
    try:
        if stage.found:
            return function(stage.found)(store, document)
        if not _is_remembered(stage, document):
            return None
        needs = _needs(store, stage, document)
        answer = json.loads(_file(store, job, document, needs).read_bytes())
        if {key: answer[key] for key in ("code", "store", "known")} != _state(store, stage):
            return None
        result: Json = answer["result"]
        made = list(_made(store, result))
        if not any(artifact.kind == stage.folder for artifact in made):
            return None
        for artifact in (*needs, *made):
            _check(artifact, seen)
    except (GenflowError, OSError, ValueError, KeyError, TypeError):
        return None
    return result


def record(job: str, document: Json, store: Store, result: Json) -> None:
    """Remember what a job returned. A store that cannot be written stays without answers.

    Args:
        job: name of the program.
        document: of the job.
        store: holds the artifacts.
        result: of the job; of a pipeline, the result of every stage.
    """
    if store.mirror:
        return
    if job != PIPELINE:
        _record_stage(job, document, store, result)
        return
    made = {stage["stage"]: stage for stage in result["stages"]}
    pipeline = load(document["pipeline"], str(document["pipeline"].get("name", job)), document.get("overrides"))
    for node in pipeline.stages:
        if made.keys() >= {node.name, *node.needs}:
            own = {key: value for key, value in made[node.name].items() if key not in ("stage", "job")}
            _record_stage(node.job, node.document(made), store, own)


def _record_stage(job: str, document: Json, store: Store, result: Json) -> None:
    stage = declared().get(job)
    if stage is None or stage.found or not _is_remembered(stage, document):
        return
    with contextlib.suppress(GenflowError, OSError):
        file = _file(store, job, document, _needs(store, stage, document))
        found = json.loads(json.dumps(result), object_hook=_as_cached)
        write_atomically(file, json.dumps({**_state(store, stage), "result": found}))


def _as_cached(document: Json) -> Json:
    return {**document, "cached": True} if "cached" in document else document


def _is_remembered(stage: Stage, document: Json) -> bool:
    """Whether the store and the document decide the result alone."""
    default = Recipe().model_dump(mode="json")
    inside = all(look_up(document["recipe"], key) == look_up(default, key) for key in stage.outside)
    return inside and not document.get("inputs", {}).get("fresh")


def _file(store: Store, job: str, document: Json, needs: list[Artifact]) -> Path:
    inputs = {key: value for key, value in document.get("inputs", {}).items() if key not in SPOKEN}
    decided = {**document, "inputs": inputs, "job": job, "needs": [artifact.id for artifact in needs]}
    return store.root / FOLDER / f"{digest(decided, 24)}.json"


def _state(store: Store, stage: Stage) -> Json:
    """What must be the same when an answer is used: the code, the store's place, the artifacts that are reviewed."""
    known = store.names(stage.reviews) if stage.reviews else []
    return {"code": fingerprint("genflow", "jobs"), "store": str(store.root), "known": known}


def _needs(store: Store, stage: Stage, document: Json) -> list[Artifact]:
    """The artifacts that a document names, in the order of their keys.

    Raises:
        GenflowError: one does not exist.
    """
    kinds = {other.makes: other.folder for other in declared().values()}
    kinds |= {makes.rpartition(".")[2]: folder for makes, folder in kinds.items()}
    found = []
    for need in stage.needs:
        for name in _values(look_up(document, need.into)):
            if name not in NOTHING:
                kind = kinds[need.reads.rpartition(".")[2]]
                found.append(store.get(kind, name) or store.find(kind, name))
    return found


def _values(named: Any) -> Iterator[str]:
    """The ids in a value of a document: an id, a list of ids, or ids by stage."""
    if isinstance(named, dict | list):
        for value in named.values() if isinstance(named, dict) else named:
            yield from _values(value)
    elif named is not None:
        yield str(named)


def _made(store: Store, result: Json) -> Iterator[Artifact]:
    """The artifacts that a result names under the keys of any stage.

    Raises:
        GenflowError: one does not exist.
    """
    for stage in declared().values():
        first, _, rest = stage.makes.partition(".0.")
        rows = result.get(first) if rest else [result]
        for row in rows if isinstance(rows, list) else ():
            id = row.get(rest or first) if isinstance(row, dict) and stage.folder else None
            if isinstance(id, str) and id not in NOTHING:
                if (artifact := store.get(stage.folder, id)) is None:
                    raise GenflowError(f"{stage.folder} {id} is not in the store")
                yield artifact


def _check(artifact: Artifact, seen: set[tuple[str, str]]) -> None:
    """Compare an artifact's files with its manifest, except its shards.

    Raises:
        DataError: one is missing or differs.
    """
    if (artifact.kind, artifact.id) not in seen:
        for name in artifact.files("*"):
            if not name.endswith(SHARDS):
                artifact.file(name)
        seen.add((artifact.kind, artifact.id))
