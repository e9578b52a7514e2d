"""Measure the cost of serving one run on one machine: the bare engine, a plain FastAPI loop, and `genflow serve`.

    python -m benchmarks.serve RUN --seconds 10 --rounds 5 --clients 128

The three take turns in each round, because the speed of a machine changes over time. A ratio is the median of the
rounds, with the smallest and the largest. All three draw single samples with the same settings. The plain loop is the
simplest server: an endpoint that draws one request after another. A few clients saturate it. For a run whose net is
`unet2d` the loop uses diffusers' own pipeline on the same weights, as `genflow export --to diffusers` writes it.
Otherwise it uses the engine, which fills batches to 16 rows as genflow does, so that its samples have the same bytes.
With `--unfilled` it draws one row, as most servers do, and the bytes differ.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genflow.system.documents import Json


class Bare:
    """The engine alone, in this process: whole batches of 64, and one sample at a time."""

    def __init__(self, run: str, steps: int | None) -> None:
        import torch

        from genflow.commands.references import find_run
        from genflow.sampling.engine import Engine
        from genflow.storage.store import Store

        torch.set_num_threads(1)
        self._engine = Engine.load(find_run(Store(), run))
        self._options: Json = {"steps": steps} if steps else {}
        self._engine.draw(range(64), **self._options)

    def measure(self, seconds: float) -> Json:
        """Samples per second in batches, and the median milliseconds of a single sample."""
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            self._engine.draw(range(64), **self._options)
            count += 64
        rate = count / (time.perf_counter() - start)
        single, start = [], time.perf_counter()
        while time.perf_counter() - start < seconds:
            single.append(self._engine.draw([len(single)], **self._options).seconds)
        return {"samples_per_second": rate, "p50_ms": 1000 * statistics.median(single)}


def plain(run: str, port: int, steps: int | None, filled: bool) -> None:
    """Run a FastAPI app that draws one request after another, until the process is ended."""
    import threading

    import torch
    import uvicorn
    from fastapi import FastAPI, Response

    from genflow.commands.references import find_run
    from genflow.sampling.engine import Engine
    from genflow.storage.store import Store

    torch.set_num_threads(1)
    engine, app, one_at_a_time = Engine.load(find_run(Store(), run)), FastAPI(), threading.Lock()
    draw = _diffusers(run, engine, steps) if engine.recipe.net["kind"] == "unet2d" else _engine(engine, steps, filled)

    @app.get("/healthz")
    def healthz() -> str:
        return "ok"

    @app.post("/v1/models/{name}/samples")
    def samples(name: str, asked: dict[str, Any]) -> Response:
        with one_at_a_time:
            png = draw(asked["seed"])
        return Response(png, media_type="image/png")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def _engine(engine: Any, steps: int | None, filled: bool) -> Callable[[int], bytes]:
    from genflow.data import preview

    options = {"steps": steps} if steps else {}
    return lambda seed: preview.render(engine.draw([seed], padded=filled, **options).images, engine.facts)


def _diffusers(run: str, engine: Any, steps: int | None) -> Callable[[int], bytes]:
    """diffusers' pipeline of the exported run, one sample at a time."""
    import torch
    from diffusers import DiffusionPipeline

    from genflow.commands.references import find_run
    from genflow.sampling import export
    from genflow.storage.store import Store

    with tempfile.TemporaryDirectory() as folder:
        export.write(find_run(Store(), run), engine, "diffusers", Path(folder))
        pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)

    def draw(seed: int) -> bytes:
        generator = torch.Generator().manual_seed(seed % 2**63)
        count = steps or engine.options["steps"]
        image = pipeline(batch_size=1, num_inference_steps=count, generator=generator).images[0]
        png = io.BytesIO()
        image.save(png, "PNG")
        return png.getvalue()

    return draw


async def load(port: int, name: str, clients: int, seconds: float, steps: int | None) -> Json:
    """Load the server with clients that wait for each answer before the next request, over persistent connections."""
    took: list[float] = []
    ends: list[float] = []
    failed = 0
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        seed = number * 1_000_000
        while time.perf_counter() < end:
            seed += 1
            body = json.dumps({"n": 1, "seed": seed, "label": None, **({"steps": steps} if steps else {})}).encode()
            head = f"POST /v1/models/{name}/samples HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            start = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            assert length
            await reader.readexactly(int(length[1]))
            if re.search(rb"connection: close", answer, re.IGNORECASE):
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            if answer.split(b" ", 2)[1] == b"200":
                ends.append(time.perf_counter())
                took.append(ends[-1] - start)
            else:
                failed += 1
                await asyncio.sleep(0.1)
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*[client(i) for i in range(clients)])
    # answers come in bursts, one batch at a time: fit a line to their count, without both ends
    steady = sorted(at for at in ends if begun + 0.2 * seconds < at < end)
    rate = statistics.linear_regression(steady, range(len(steady))).slope if len(steady) > 2 else 0.0
    p50, p95 = (1000 * statistics.quantiles(took, n=20)[i] for i in (9, 18))
    return {"clients": clients, "samples_per_second": rate, "p50_ms": p50, "p95_ms": p95, "refused": failed}


@contextlib.contextmanager
def served(
    command: list[str], port: int, name: str, clients: int, asked: argparse.Namespace
) -> Iterator[Callable[[], Json]]:
    """Start a server for the block; the yielded function measures it with one client and with many."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _until_it_answers(port, server)
            asyncio.run(load(port, name, 4, 3.0, asked.steps))  # warm-up

            def measure() -> Json:
                alone, many = (asyncio.run(load(port, name, n, asked.seconds, asked.steps)) for n in (1, clients))
                return {"alone": alone, "many": many}

            yield measure
        finally:
            server.terminate()
            server.wait(timeout=120)


def _until_it_answers(port: int, server: "subprocess.Popen[bytes]") -> None:
    import urllib.request

    end = time.monotonic() + 240
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise SystemExit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--unfilled", action="store_true")
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plain:
        plain(asked.run, asked.plain, asked.steps, not asked.unfilled)
        return
    from genflow.commands.references import find_run
    from genflow.storage.store import Store
    from genflow.system import environment, ports

    name = find_run(Store(), asked.run).name
    port, other = ports.free_port(), ports.free_port()
    command = [sys.executable, "-m", "genflow.cli", "serve", asked.run, "--name", f"bench-{port}", "--port", str(port)]
    own = [sys.executable, "-m", "benchmarks.serve", asked.run, "--plain", str(other)]
    own += ["--unfilled"] if asked.unfilled else []
    own += ["--steps", str(asked.steps)] if asked.steps else []
    alone, rounds = Bare(asked.run, asked.steps), []
    ours_, plain_ = (command, port, f"bench-{port}", asked.clients), (own, other, name, min(4, asked.clients))
    with served(*ours_, asked) as ours, served(*plain_, asked) as plainly:
        for _ in range(asked.rounds):
            before, here, after = alone.measure(asked.seconds), ours(), alone.measure(asked.seconds)
            bare = {key: (before[key] + after[key]) / 2 for key in before}
            rounds.append({"bare": bare, "genflow": here, "plain": plainly()})
    results: Json = {"rounds": rounds}

    def ratio(of: Callable[[Json], float]) -> list[float]:
        found = [of(each) for each in rounds]
        return [round(value, 3) for value in (statistics.median(found), min(found), max(found))]

    def many(each: Json, way: str) -> float:
        rate: float = each[way]["many"]["samples_per_second"]
        return rate

    results["ratios"] = {
        "throughput_over_bare": ratio(lambda r: many(r, "genflow") / r["bare"]["samples_per_second"]),
        "throughput_over_plain": ratio(lambda r: many(r, "genflow") / many(r, "plain")),
        "p50_alone_over_bare_ms": ratio(lambda r: r["genflow"]["alone"]["p50_ms"] - r["bare"]["p50_ms"]),
        "p50_alone_over_plain_ms": ratio(lambda r: r["genflow"]["alone"]["p50_ms"] - r["plain"]["alone"]["p50_ms"]),
    }
    results["machine"] = {"cores": environment.cores(), "load": os.getloadavg()[0], "file": str(Path(__file__).name)}
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
