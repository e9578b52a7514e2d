"""What serving costs, as ratios of one run on one machine: the bare engine, a plain FastAPI loop, and `genflow serve`.

    python -m benchmarks.serve RUN --seconds 10 --clients 128

All three draw single samples with the same settings. The plain loop is what one writes first: an endpoint that draws
one request after another. For a run whose net is `unet2d` it is diffusers' own pipeline on the same weights, as
`genflow export --to diffusers` wrote it. Else it is the engine; it fills batches to 16 rows as genflow does, so that
its samples are the same to the byte, and `--unfilled` lets it draw one row, as most do, with other bytes.
"""

import argparse
import asyncio
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Document = dict[str, Any]


def bare(run: str, steps: int | None, seconds: float) -> Document:
    """The engine alone, in this process: whole batches of 64, and one sample at a time."""
    import torch

    from genflow.commands import find_run
    from genflow.engine import Engine
    from genflow.store import Store

    torch.set_num_threads(1)
    engine = Engine.load(find_run(Store(), run))
    options: Document = {"steps": steps} if steps else {}
    engine.draw(range(64), **options)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        engine.draw(range(64), **options)
        count += 64
    rate = count / (time.perf_counter() - start)
    single = [engine.draw([i], **options).seconds for i in range(30)]
    return {"samples_per_second": rate, "p50_ms": 1000 * statistics.median(single)}


def plain(run: str, port: int, steps: int | None, filled: bool) -> None:
    """A FastAPI app that draws one request after another. Runs until it is ended."""
    import threading

    import torch
    import uvicorn
    from fastapi import FastAPI, Response

    from genflow.commands import find_run
    from genflow.engine import Engine
    from genflow.store import Store

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
    """The stock pipeline of the run's export, one sample at a time."""
    import torch
    from diffusers import DiffusionPipeline

    from genflow import exporting

    with tempfile.TemporaryDirectory() as folder:
        exporting.export(run, "diffusers", Path(folder), json=True)
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


async def load(port: int, name: str, clients: int, seconds: float, steps: int | None) -> Document:
    """Clients that each wait for their answer before they ask again, over connections that stay open."""
    took: list[float] = []
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
            if answer.split(b" ", 2)[1] == b"200":
                took.append(time.perf_counter() - start)
            else:
                failed += 1
                await asyncio.sleep(0.1)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*[client(i) for i in range(clients)])
    rate = len(took) / (time.perf_counter() - start)
    p50, p95 = (1000 * statistics.quantiles(took, n=20)[i] for i in (9, 18))
    return {"clients": clients, "samples_per_second": rate, "p50_ms": p50, "p95_ms": p95, "refused": failed}


def measured(command: list[str], port: int, name: str, asked: argparse.Namespace) -> Document:
    """Start a server, load it by one client and by many, and end it."""
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _until_it_answers(port, server)
            asyncio.run(load(port, name, 4, 3.0, asked.steps))  # it warms up
            alone = asyncio.run(load(port, name, 1, asked.seconds, asked.steps))
            many = asyncio.run(load(port, name, asked.clients, asked.seconds, asked.steps))
            return {"alone": alone, "many": many}
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
    raise SystemExit("the server does not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--unfilled", action="store_true")
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plain:
        plain(asked.run, asked.plain, asked.steps, not asked.unfilled)
        return
    from genflow import env
    from genflow.commands import find_run
    from genflow.store import Store

    name = find_run(Store(), asked.run).name
    results: Document = {"bare": bare(asked.run, asked.steps, asked.seconds)}
    port = env.free_port()
    command = [sys.executable, "-m", "genflow.cli", "serve", asked.run, "--name", f"bench-{port}", "--port", str(port)]
    results["genflow"] = measured(command, port, f"bench-{port}", asked)
    after = bare(asked.run, asked.steps, asked.seconds)  # the machine may have had other things to do meanwhile
    results["bare_after"] = after
    port = env.free_port()
    own = [sys.executable, "-m", "benchmarks.serve", asked.run, "--plain", str(port)]
    own += ["--unfilled"] if asked.unfilled else []
    own += ["--steps", str(asked.steps)] if asked.steps else []
    results["plain"] = measured(own, port, name, asked)
    ours, bare_ = results["genflow"], {key: (results["bare"][key] + after[key]) / 2 for key in after}
    results["ratios"] = {
        "throughput_over_bare": ours["many"]["samples_per_second"] / bare_["samples_per_second"],
        "throughput_over_plain": ours["many"]["samples_per_second"] / results["plain"]["many"]["samples_per_second"],
        "p50_alone_over_bare_ms": ours["alone"]["p50_ms"] - bare_["p50_ms"],
        "p50_alone_over_plain_ms": ours["alone"]["p50_ms"] - results["plain"]["alone"]["p50_ms"],
    }
    results["machine"] = {"cores": env.cores(), "load": os.getloadavg()[0], "file": str(Path(__file__).name)}
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
