"""The right to make something, among machines that share a bucket and nothing else.

    locks/<name>~<nonce>.claim    who claims it, written once; the server's clock says when
    locks/<name>~<nonce>.beat     written again every few seconds, while its holder lives

Who sees a living claim that is not younger than his own takes his own back. Of two claims the second is written after
the first is there (S3 lists what was written before), so its writer sees the first, and never both go on. A claim has
ended when its holder's process is gone from this machine, or when it has not been heard of for `EXPIRY_S`.
All times are the server's: no machine's clock counts.
"""

import contextlib
import json
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genflow.errors import GenflowError, UsageError
from genflow.storage.s3 import Bucket

HEARTBEAT_S, EXPIRY_S = 5.0, 40.0
TRIES = 3  # of two who come at one moment both take their claims back
_own_claims: set[str] = set()  # the claims that this process holds now


def machine_id() -> str:
    """This machine, and the table that its process ids are of."""
    node = os.uname().nodename
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{node}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return node


def process_start_time(pid: int) -> str:
    """When a process began, so that another one with its number is not taken for it; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


@contextlib.contextmanager
def lease(bucket: Bucket, name: str, *, wait: bool) -> Iterator[None]:
    """Hold the right while in the block.

    Raises:
        UsageError: somebody holds it and `wait` is false; it is named.
        SetupError: the bucket cannot be reached.
    """
    key = f"locks/{name}~{uuid.uuid4().hex}"
    pid = os.getpid()
    holder = {"machine": machine_id(), "pid": pid, "born": process_start_time(pid), "node": os.uname().nodename}
    _own_claims.add(key)
    try:
        _acquire(bucket, key, holder, name, wait=wait)
    except BaseException:
        _own_claims.discard(key)
        raise
    over = threading.Event()
    thread = threading.Thread(target=_send_heartbeats, args=(bucket, key, over), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(GenflowError):
            for end in (".beat", ".claim"):
                bucket.delete(key + end)
        _own_claims.discard(key)


def current_holder(bucket: Bucket, name: str) -> dict[str, Any] | None:
    """Who holds a right at this moment, as far as the bucket knows; None: nobody.

    Without a claim of one's own there is no clock to compare with, so a holder whose machine died is believed in.
    """
    for claim in bucket.list("locks"):
        if claim.partition("~")[0] == name and claim.endswith(".claim"):
            said = _read_claim(bucket, f"locks/{claim}")
            if said and _may_be_alive(said, f"locks/{claim}"):
                return said
    return None


def _acquire(bucket: Bucket, key: str, holder: dict[str, Any], name: str, *, wait: bool) -> None:
    """Claim until nobody stands in the way."""
    left, seen = TRIES, dict[str, int]()
    while other := _claim(bucket, key, holder):
        left -= 1
        # who is on this machine is known to live; of another machine's, it is once it has been heard of again
        lives = other["machine"] == machine_id() or seen.setdefault(other["claim"], other["heard"]) != other["heard"]
        if not wait and left <= 0 and lives:
            raise UsageError(f"{name.partition('-')[2]} is being made by process {other['pid']} on {other['node']}",
                             "wait for it, or stop that process")  # fmt: skip
        time.sleep(random.uniform(0.2, 1.0))


def _claim(bucket: Bucket, key: str, holder: dict[str, Any]) -> dict[str, Any] | None:
    """Claim; whoever stands in the way, or None."""
    bucket.write(f"{key}.claim", json.dumps(holder).encode())
    folder, _, own = key.rpartition("/")
    what = own.partition("~")[0]
    there = {name: known for name, known in bucket.list(folder).items() if name.partition("~")[0] == what}
    mine = there.get(f"{own}.claim")
    if mine is None:  # somebody took us for dead
        return {"pid": 0, "node": "another machine", "machine": "", "claim": "", "heard": 0}
    for name, known in there.items():
        nonce, _, end = name.partition(".")
        if end != "claim" or nonce == own or known is None or known[1] > mine[1]:
            continue
        other = _read_claim(bucket, f"{folder}/{name}")
        beat = there.get(f"{nonce}.beat") or known
        heard = max(known[1], beat[1])
        if other is None or not _may_be_alive(other, f"{folder}/{name}") or mine[1] - heard > EXPIRY_S * 1e9:
            for gone in (f"{nonce}.beat", f"{nonce}.claim"):
                bucket.delete(f"{folder}/{gone}")
            continue
        bucket.delete(f"{key}.claim")
        return {**other, "claim": nonce, "heard": heard}
    return None


def _read_claim(bucket: Bucket, key: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(bucket.read(key) or b"null") or {}) or None
    except ValueError:
        return None


def _may_be_alive(holder: dict[str, Any], claim: str) -> bool:
    """Whether a holder may be alive: of another machine's, nothing is known."""
    if holder.get("machine") != machine_id():
        return True
    if holder.get("pid") == os.getpid():
        return claim.removesuffix(".claim") in _own_claims
    return bool(holder.get("born") == process_start_time(int(holder.get("pid", 0))))


def _send_heartbeats(bucket: Bucket, key: str, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_S):
        with contextlib.suppress(GenflowError, OSError):  # the next beat may come through
            bucket.write(f"{key}.beat", b"")
