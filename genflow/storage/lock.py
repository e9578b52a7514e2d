"""A lock that several machines share through a bucket, and through nothing else.

    locks/<name>~<nonce>.claim    the claim of one process, written once; its time is the server's
    locks/<name>~<nonce>.beat     the heartbeat, written every `HEARTBEAT_S` seconds while the process lives

A process that sees a live claim at least as old as its own withdraws its own. Two claims never both succeed: the second
is written after the first exists, and S3 lists everything that was written before, so the second process sees the first
claim. A claim ends when its process has ended (checked on the same machine only) or when its heartbeat is older than
`EXPIRY_S`. All times come from the server, so the clocks of the machines do not matter.
"""

import contextlib
import json
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genflow.errors import GenflowError, UsageError
from genflow.storage.s3 import Bucket

HEARTBEAT_S, EXPIRY_S = 5.0, 40.0
TRIES = 3  # two processes that claim at the same moment both withdraw
_own_claims: set[str] = set()  # of this process; without those that it could not delete because the bucket was down


def machine_id() -> str:
    """This machine, its boot and its process id namespace."""
    node = os.uname().nodename
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{node}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return node


def process_start_time(pid: int) -> str:
    """When a process started, which tells it from a later process with the same id; empty if there is no process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


@contextlib.contextmanager
def lease(bucket: Bucket, name: str, *, wait: bool, uses: Sequence[str] = ()) -> Iterator[None]:
    """Hold the lock while in the block.

    Args:
        bucket: holds the claims.
        name: of the lock.
        wait: whether to wait for the process that holds the lock.
        uses: ids of artifacts, which the claim lists.

    Raises:
        UsageError: another process holds the lock and `wait` is false; the message names the process.
        SetupError: the bucket cannot be reached.
    """
    key = f"locks/{name}~{uuid.uuid4().hex}"
    pid = os.getpid()
    claim = {"machine": machine_id(), "pid": pid, "born": process_start_time(pid), "node": os.uname().nodename,
             "uses": list(uses)}  # fmt: skip
    _own_claims.add(key)
    try:
        _acquire(bucket, key, claim, name, wait=wait)
    except BaseException:
        _own_claims.discard(key)
        raise
    stop = threading.Event()
    thread = threading.Thread(target=_send_heartbeats, args=(bucket, key, stop), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(GenflowError):
            for suffix in (".beat", ".claim"):
                bucket.delete(key + suffix)
        _own_claims.discard(key)


def current_holder(bucket: Bucket, name: str) -> dict[str, Any] | None:
    """The claim of the process that holds a lock; None if the lock is free.

    The claim of another machine always counts: without a claim of its own, the caller has no time to compare with.
    """
    for key in bucket.list("locks"):
        if key.partition("~")[0] == name and key.endswith(".claim"):
            claim = _read_claim(bucket, f"locks/{key}")
            if claim and _may_be_alive(claim, f"locks/{key}"):
                return claim
    return None


def live_claims(bucket: Bucket) -> list[tuple[str, dict[str, Any]]]:
    """The name of every held lock, and the claim of its holder. A caller with a fresh claim ignores expired ones."""
    listed = bucket.list("locks")
    now = max((version[1] for version in listed.values() if version), default=0)
    found = []
    for key, version in listed.items():
        name, nonce = key.removesuffix(".claim").split("~") if key.endswith(".claim") and "~" in key else ("", "")
        if not name or version is None:
            continue
        heard = max(version[1], (listed.get(f"{name}~{nonce}.beat") or version)[1])
        claim = _read_claim(bucket, f"locks/{key}") if now - heard <= EXPIRY_S * 1e9 else None
        if claim and _may_be_alive(claim, f"locks/{key}"):
            found.append((name, claim))
    return found


def _acquire(bucket: Bucket, key: str, claim: dict[str, Any], name: str, *, wait: bool) -> None:
    """Claim the lock until no other process holds it."""
    tries, first_seen = TRIES, dict[str, int]()
    while other := _claim(bucket, key, claim):
        tries -= 1
        # a process on this machine was checked; one on another machine is alive if its heartbeat has changed
        alive = other["machine"] == machine_id() or (
            first_seen.setdefault(other["claim"], other["heard"]) != other["heard"]
        )
        if not wait and tries <= 0 and alive:
            raise UsageError(f"{name.partition('-')[2]} is being made by process {other['pid']} on {other['node']}",
                             "wait for it, or stop that process")  # fmt: skip
        time.sleep(random.uniform(0.2, 1.0))


def _claim(bucket: Bucket, key: str, claim: dict[str, Any]) -> dict[str, Any] | None:
    """Write the claim. Return the claim of the process that holds the lock, or None if this process now holds it."""
    bucket.write(f"{key}.claim", json.dumps(claim).encode())
    folder, _, own = key.rpartition("/")
    lock_name = own.partition("~")[0]
    listed = {name: version for name, version in bucket.list(folder).items() if name.partition("~")[0] == lock_name}
    mine = listed.get(f"{own}.claim")
    if mine is None:  # another process took this one for dead and deleted its claim
        return {"pid": 0, "node": "another machine", "machine": "", "claim": "", "heard": 0}
    for name, version in listed.items():
        nonce, _, suffix = name.partition(".")
        if suffix != "claim" or nonce == own or version is None or version[1] > mine[1]:
            continue
        other = _read_claim(bucket, f"{folder}/{name}")
        heartbeat = listed.get(f"{nonce}.beat") or version
        heard = max(version[1], heartbeat[1])
        if other is None or not _may_be_alive(other, f"{folder}/{name}") or mine[1] - heard > EXPIRY_S * 1e9:
            for expired in (f"{nonce}.beat", f"{nonce}.claim"):
                bucket.delete(f"{folder}/{expired}")
            continue
        bucket.delete(f"{key}.claim")
        return {**other, "claim": nonce, "heard": heard}
    return None


def _read_claim(bucket: Bucket, key: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(bucket.read(key) or b"null") or {}) or None
    except ValueError:
        return None


def _may_be_alive(claim: dict[str, Any], key: str) -> bool:
    """Whether the process of a claim may be alive. A process on another machine cannot be checked, so it may be."""
    if claim.get("machine") != machine_id():
        return True
    if claim.get("pid") == os.getpid():
        return key.removesuffix(".claim") in _own_claims
    return bool(claim.get("born") == process_start_time(int(claim.get("pid", 0))))


def _send_heartbeats(bucket: Bucket, key: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(GenflowError, OSError):  # the next heartbeat may succeed
            bucket.write(f"{key}.beat", b"")
