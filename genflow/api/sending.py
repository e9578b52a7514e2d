"""Send a job from Python."""

from genflow.storage.store import Store
from genflow.system.documents import Json


def send(stage: str, document: Json, store: Store, cluster: bool, address: str) -> Json:
    """Send a job and show its progress on standard error; its result.

    Raises:
        GenflowError: the error of the job.
        KeyboardInterrupt: the job continues on the cluster.
    """
    from genflow.cli.dispatch import run
    from genflow.system import environment

    environment.ensure_home()
    done = run(stage, document, store, cluster, address)
    if done.get("schema") == "genflow.job/1":
        raise KeyboardInterrupt(f"the job {done.get('job', '')} continues on the cluster")
    return done
