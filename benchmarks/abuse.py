"""Test a served model with malformed requests, with overload, and with replicas that die or hang.

    python -m benchmarks.abuse RUN --fuzz 100000 --seed 0
    python -m benchmarks.abuse RUN --only overload

Starts `genflow serve RUN --replicas 2` and sends requests over raw sockets, as any client can: malformed requests from
the fuzzer of the tests, and bytes that are not HTTP; an open loop at ten times the capacity that was measured just
before; and, under load, a replica that is killed and one that is stopped (SIGSTOP). Prints one JSON document; the exit
code is 1 if one of the lists `violations` is not empty.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.serve import _until_it_answers
from genflow.system.documents import Json

NOT_HTTP = [
    b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01",
    b"\x00" * 64,
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/models/m/samples HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/models/m/samples HTTP/1.1\r\nHost: x\r\nContent-Length: 1e9\r\n\r\n",
    b"POST /v1/models/m/samples HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"POST /v1/models/m/samples HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    b"POST /v1/models/m/samples HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/models/m/samples HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b" " * 65536
    + b"\r\n" + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 40 + b"0\r\n\r\n",
    b"DELETE /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /%00%ff/..%2f..%2fetc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
]  # fmt: skip


def replicas(application: str) -> list[int]:
    """Process ids of an application's replicas on this machine, oldest first."""
    return _named(f"ray::ServeReplica:{application}:")


def workers(application: str) -> list[int]:
    """Process ids of the processes that draw for an application's replicas."""
    ours = set(replicas(application))
    return [pid for pid in _named(f"{sys.executable}\0-m\0genflow.serving.engine_process") if _parent(pid) in ours]


def _named(beginning: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if words.startswith(beginning.encode()):
            found.append(int(folder.name))
    return sorted(found)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Server:
    """`genflow serve`, and its processes."""

    def __init__(self, run: str, replicas: int) -> None:
        from genflow.system import ports

        self.port = ports.free_port()
        self.name = f"abused-{self.port}"
        command = [sys.executable, "-m", "genflow.cli", "serve", run, "--name", self.name, "--port", str(self.port)]
        self.log = Path(f"/tmp/{self.name}.log")
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*command, "--replicas", str(replicas)], stdout=log, stderr=log, start_new_session=True
            )
        _until_it_answers(self.port, self.process)

    def pids(self) -> list[int]:
        """Process ids of the replicas and of the processes that draw for them."""
        return replicas(self.name) + workers(self.name)

    def memory_mb(self) -> int:
        """Resident memory of all of these processes."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20

    def tracebacks(self) -> int:
        """The number of tracebacks in the replicas' logs."""
        session = re.search(r"(/\S+/session_\S+?)/", self._environment())
        logs = Path(session[1], "logs/serve").glob(f"*{self.name}*") if session else []
        return sum(path.read_text(errors="replace", encoding="utf-8").count("Traceback (most recent") for path in logs)

    def _environment(self) -> str:
        for pid in self.pids():
            for file in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    target = os.readlink(file)
                except OSError:
                    continue
                if "/session_" in target:
                    return target
        return ""

    def end(self) -> None:
        """Stop the server with SIGTERM, because a background job of a shell ignores SIGINT."""
        self.process.terminate()
        self.process.wait(timeout=120)


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one answer: status, headers and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:] if line)}
    body = b""
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    return int(lines[0].split(" ")[1]), headers, body


def post(path: str, body: bytes) -> bytes:
    """The bytes of a POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("utf-8", "surrogateescape") + body


async def fuzz(server: Server, count: int, seed: int, connections: int = 24) -> Json:
    """Send `count` malformed requests; a twentieth of them is not HTTP."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.badrequests import bodies

    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
    document = json.loads((await answer(reader))[2])
    writer.close()
    chance, made = random.Random(seed), bodies(document, count, seed)
    statuses: Counter[str] = Counter()
    wrong: list[str] = []

    async def caller() -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for path, body in made:
            raw = chance.random() < 0.05
            sent = chance.choice(NOT_HTTP) if raw else post(path.replace("/flow/", f"/{server.name}/"), body)
            for attempt in range(2):  # the server may have closed a persistent connection in the meantime
                fresh = connection is None or raw
                try:
                    if fresh or connection is None:
                        connection = await asyncio.open_connection("127.0.0.1", server.port)
                    reader, writer = connection
                    writer.write(sent)
                    await writer.drain()
                    if raw:
                        writer.write_eof()
                    status, headers, text = await asyncio.wait_for(answer(reader), 60)
                except (OSError, EOFError, asyncio.IncompleteReadError):
                    connection = None
                    if fresh or attempt:
                        statuses["closed"] += 1
                        break
                except TimeoutError:
                    connection = None
                    statuses["silent"] += 1
                    wrong.append(f"no answer to {sent[:200]!r}")
                    break
                else:
                    statuses[str(status)] += 1
                    if status >= 500 and len(wrong) < 20:
                        wrong.append(f"{status} to {sent[:200]!r}: {text[:200]!r}")
                    if raw or headers.get("connection", "") == "close":
                        writer.close()
                        connection = None
                    break

    before, torn, memory = server.pids(), server.tracebacks(), server.memory_mb()
    start = time.monotonic()
    await asyncio.gather(*[caller() for _ in range(connections)])
    took = time.monotonic() - start
    if server.pids() != before:
        wrong.append(f"replicas restarted: {before} -> {server.pids()}")
    if server.tracebacks() > torn:
        wrong.append(f"{server.tracebacks() - torn} tracebacks in Serve's logs")
    return {
        "requests": sum(statuses.values()), "seed": seed, "statuses": dict(sorted(statuses.items())),
        "per_second": round(sum(statuses.values()) / took, 1), "memory_mb": [memory, server.memory_mb()],
        "violations": wrong,
    }  # fmt: skip


async def closed_loop(server: Server, clients: int, seconds: float) -> list[tuple[float, int, float]]:
    """(start, status, seconds) of requests from clients that wait for each answer."""
    seen: list[tuple[float, int, float]] = []
    errors: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        connection = None
        seed = number * 1_000_000
        while time.monotonic() < end:
            seed += 1
            start = time.monotonic()
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", server.port)
                connection[1].write(post(f"/v1/models/{server.name}/samples", json.dumps({"seed": seed}).encode()))
                status, headers, text = await asyncio.wait_for(answer(connection[0]), 90)
                if status != 200:
                    errors[f"{status} {text[:200]!r}"] += 1
                if headers.get("connection", "") == "close":
                    connection[1].close()
                    connection = None
            except (OSError, EOFError, TimeoutError):
                status, connection = 0, None
            seen.append((start, status, time.monotonic() - start))
            if status != 200:
                await asyncio.sleep(0.1)

    await asyncio.gather(*[client(i) for i in range(clients)])
    for text, count in errors.most_common(5):
        print(f"{count} x {text}", file=sys.stderr)
    return seen


async def overload(server: Server, seconds: float) -> Json:
    """Offer ten times the capacity, from clients that do not wait for each other."""
    warm = await closed_loop(server, 64, 5.0)
    calm = [took for _, status, took in await closed_loop(server, 64, seconds) if status == 200]
    capacity = len(calm) / seconds
    served: list[float] = []
    refused: list[float] = []
    statuses: Counter[str] = Counter()
    hintless = 0

    async def one(seed: int) -> None:
        nonlocal hintless
        start = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(post(f"/v1/models/{server.name}/samples", json.dumps({"seed": seed}).encode()))
            status, headers, _ = await asyncio.wait_for(answer(reader), 90)
            writer.close()
        except (OSError, EOFError, TimeoutError):
            statuses["none"] += 1
            return
        statuses[str(status)] += 1
        (served if status == 200 else refused).append(time.monotonic() - start)
        hintless += status in (429, 503) and "retry-after" not in headers

    before, memory = server.pids(), server.memory_mb()
    rate, begun, tasks = 10 * capacity, time.monotonic(), set()
    number = 0
    while (now := time.monotonic() - begun) < seconds:
        while number < now * rate:
            task = asyncio.create_task(one(10**9 + number))
            tasks.add(task)
            number += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    wrong = [f"{hintless} refusals without Retry-After"] if hintless else []
    wrong += [f"{count} answers {status}" for status, count in statuses.items() if status not in ("200", "429", "503")]
    if server.pids() != before:
        wrong.append("replicas restarted")
    return {
        "warmed_with": len(warm), "capacity_per_second": round(capacity, 1),
        "offered_per_second": round(number / seconds, 1),
        "statuses": dict(statuses), "served_per_second": round(len(served) / (time.monotonic() - begun), 1),
        "calm_s": _spread(calm), "served_s": _spread(served), "refused_s": _spread(refused),
        "memory_mb": [memory, server.memory_mb()], "violations": wrong,
    }  # fmt: skip


def _spread(values: list[float]) -> Json:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "p99": round(cuts[98], 3)}


async def deaths(server: Server) -> Json:
    """Under load, one after another: kill and stop a replica, kill and stop the process that draws for one."""
    found: Json = {"violations": []}
    kinds = (("killed replica", replicas, signal.SIGKILL), ("hung replica", replicas, signal.SIGSTOP),
             ("killed worker", workers, signal.SIGKILL), ("hung worker", workers, signal.SIGSTOP))  # fmt: skip
    for what, find, how in kinds:
        whole = find(server.name)
        load = asyncio.create_task(closed_loop(server, 6, 40.0))
        await asyncio.sleep(2.0)
        victim = find(server.name)[0]
        struck = time.monotonic()
        os.kill(victim, how)
        replaced = None
        while time.monotonic() - struck < 36:
            await asyncio.sleep(0.25)
            now = find(server.name)
            if replaced is None and victim not in now and len(now) >= len(whole):
                replaced = round(time.monotonic() - struck, 1)
        seen = await load
        lost = [status for _, status, _ in seen if status != 200]
        longest = max(took for start, _, took in seen if start + took > struck)
        found[what] = {"requests": len(seen), "lost": len(lost), "longest_s": round(longest, 1), "replaced_s": replaced}
        if lost or replaced is None:
            violation = f"{what}: {len(lost)} requests lost {Counter(lost)}, replaced after {replaced} s"
            found["violations"].append(violation)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--fuzz", type=int, default=10_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of the overload")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--only", choices=("fuzz", "overload", "deaths"))
    asked = parser.parse_args()
    server = Server(asked.run, asked.replicas)
    found: Json = {}
    try:
        if asked.only in (None, "fuzz"):
            found["fuzz"] = asyncio.run(fuzz(server, asked.fuzz, asked.seed))
        if asked.only in (None, "overload"):
            found["overload"] = asyncio.run(overload(server, asked.seconds))
        if asked.only in (None, "deaths"):
            found["deaths"] = asyncio.run(deaths(server))
    finally:
        print(json.dumps(found, indent=1), flush=True)
        server.end()
    raise SystemExit(any(part["violations"] for part in found.values()))


if __name__ == "__main__":
    main()
