"""Who makes an artifact now: a lock file on this machine and, for a store in a bucket, a lease in the bucket.

    locks/<kind>-<id>.lock     names the process that holds it, and the artifacts that it uses
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from genflow.errors import UsageError
from genflow.storage.artifact import KINDS
from genflow.storage.file_lock import Held, held_text, open_locked
from genflow.storage.files import explain_disk_errors
from genflow.storage.lock import current_holder, lease, live_claims
from genflow.storage.mirror import BucketMirror


class Locks:
    """The locks of a store.

    Args:
        root: the store's folder.
        mirror: the mirror of a store in a bucket; None for a folder.
    """

    def __init__(self, root: Path, mirror: BucketMirror | None) -> None:
        self.root, self.mirror = root, mirror

    @contextmanager
    def hold(self, kind: str, id: str, *, wait: bool = True, uses: Sequence[str] = ()) -> Iterator[None]:
        """See `Store.lock`."""
        path = self.file(kind, id)
        with explain_disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = open_locked(path, wait)
            except Held as held:
                message = f"{id} is being made by process {held}"
                raise UsageError(message, "wait for it, or stop that process") from held
        with file:
            with explain_disk_errors(path.parent):
                file.seek(0)
                file.truncate()
                text = "\n".join([f"{os.getpid()} on {os.uname().nodename}", *uses])
                os.write(file.fileno(), text.encode())  # no buffer that `close` would write again
            if self.mirror and kind in KINDS:  # locks of other kinds are for this machine only
                with lease(self.mirror.bucket, f"{kind}-{id}", wait=wait, uses=uses):
                    yield
            else:
                yield

    def file(self, kind: str, id: str) -> Path:
        """The lock file of an artifact."""
        return self.root / "locks" / f"{kind}-{id}.lock"

    def holder(self, kind: str, id: str) -> str:
        """See `Store.holder`."""
        if text := held_text(self.file(kind, id)):
            return text.partition("\n")[0]
        claim = current_holder(self.mirror.bucket, f"{kind}-{id}") if self.mirror else None
        return f"{claim['pid']} on {claim['node']}" if claim else ""

    def users(self, id: str) -> list[tuple[str, str]]:
        """See `Store.users`."""
        found = {}
        for file in sorted((self.root / "locks").glob("*.lock")):
            process, *uses = held_text(file).split("\n")
            if id in uses:
                found[file.stem] = process
        for name, claim in live_claims(self.mirror.bucket) if self.mirror else ():
            if id in claim.get("uses", ()):
                found.setdefault(name, f"{claim['pid']} on {claim['node']}")
        return list(found.items())
