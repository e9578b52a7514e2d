"""Measure the cost of the proxy before Serve's replicas: an empty app through Ray's proxy, and through HAProxy.

    python -m benchmarks.proxies [--requests 500]

One client waits for each answer; each proxy has its own Ray. Prints the median milliseconds of both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def measure(requests: int) -> float:
    """The median milliseconds of a request, through the proxy that the environment variables select."""
    import http.client

    from genflow.system import environment, ports

    environment.configure_local_ray()
    import ray
    from fastapi import FastAPI, Response
    from ray import serve

    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Empty:
        @app.post("/")
        async def post(self) -> Response:
            return Response(b"ok")

    port = ports.free_port()
    cores = environment.cores()
    ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Empty.bind())  # type: ignore[attr-defined]
    time.sleep(3)
    client, took = http.client.HTTPConnection("127.0.0.1", port), []
    for _ in range(requests + 50):
        start = time.perf_counter()
        client.request("POST", "/", b"{}")
        assert client.getresponse().read() == b"ok"
        took.append(time.perf_counter() - start)
        time.sleep(0.005)
    return 1000 * statistics.median(took[50:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure(asked.requests)), flush=True)
        os._exit(0)  # Ray ends with its driver
    found = {}
    for name, on in (("ray", "0"), ("haproxy", "1")):
        command = [sys.executable, "-m", "benchmarks.proxies", "--here", "--requests", str(asked.requests)]
        environment = {**os.environ, "RAY_SERVE_ENABLE_HA_PROXY": on}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, encoding="utf-8")
        found[f"{name}_p50_ms"] = round(json.loads(done.stdout.splitlines()[-1]), 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
