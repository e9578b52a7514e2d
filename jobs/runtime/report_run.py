"""A report, such as a comparison, as a run of MLflow: its files are the run's artifacts."""

from collections.abc import Sequence

from genflow.storage.store import Artifact, Store
from genflow.tracking import database, sync
from genflow.tracking.journal import Journal, journal_path
from jobs.runtime.entrypoint import Emit, warn_if_incomplete


def send(
    store: Store, report: Artifact, kind: str, title: str, dataset: tuple[str, str], files: Sequence[str],
    verdict: Sequence[str], emit: Emit,
) -> None:  # fmt: skip
    """Write the report's journal, and send it to MLflow.

    Args:
        store: holds the report.
        report: the artifact.
        kind: comparison or tables; a tag, and the folder of the files.
        title: the run's name in MLflow.
        dataset: the name, which is also the experiment's, and the id.
        files: names of files of the report; the first is what a person reads.
        verdict: the sentences of the description.
        emit: receives a warning if MLflow could not be reached.
    """
    database.prepare(store)
    name, id = dataset
    with Journal(journal_path(store.root, report.id), experiment=name, name=title) as journal:
        journal.tags({"kind": kind, "dataset": id})
        for file in files:
            journal.artifact(report.file(file), kind)
        said = "\n".join(f"- {sentence}" for sentence in verdict)
        journal.description(f"{said}\n\nThe report is `{kind}/{files[0]}` under *Artifacts*.")
        journal.status("FINISHED")
    warn_if_incomplete(emit, report.id, sync.replay(store, report.id, deadline_s=10))
