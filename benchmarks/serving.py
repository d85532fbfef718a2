"""Load on a server: 1, 8 and 64 clients on the loopback, against serving one request at a time, alternating in one run.

    python -m benchmarks.serving --model_path demo --clients 1 8 64 --num_requests 200
    python -m benchmarks.serving --model_path demo --soak 10000

Contestants, each a process of its own with the same model, dtype and images: `florence2` is `florence2 serve`;
`one slot` is the same with `--batch_size 1`; `generate` is a FastAPI route around transformers' `generate` and a lock,
as on the model card. All answer `POST /v1/predict` with one image and the task `more_detailed_caption`, greedily.
Requests fail the run unless their status is 200. `--soak` sends that many requests to `florence2` alone, from the most
clients, in ten parts, and reports throughput, latency and the memory of the process after each of them.

Other load on the machine distorts the result; the load before each measurement is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from florence2.demo.scenes import make_scene

SOAK_PARTS = 10
TASK = "more_detailed_caption"
NUM_IMAGES = 32
FIELDS = ("contestant", "clients", "requests", "per_second", "p50_ms", "p95_ms")


@dataclass(frozen=True)
class Load:
    """The result of one measurement."""

    contestant: str
    clients: int
    requests: int
    per_second: float
    p50_ms: float
    p95_ms: float


def bodies() -> list[dict[str, str]]:
    """Encode the images once, as clients send them."""
    encoded = []
    for seed in range(NUM_IMAGES):
        stream = io.BytesIO()
        make_scene(seed).render().save(stream, "JPEG", quality=90)
        uri = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
        encoded.append({"image": uri, "task": TASK})
    return encoded


@contextmanager
def server_process(command: list[str]) -> Iterator[tuple[str, int]]:
    """Start a server, and yield its address and process id."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise RuntimeError("".join(lines))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # so that the log never fills the pipe
        try:
            yield found[0], process.pid
        finally:
            process.terminate()
            process.wait(60)


async def send_requests(url: str, clients: int, num_requests: int, images: list[dict[str, str]]) -> list[float]:
    """Send requests from so many clients, each waiting for its answer, and return all latencies in seconds."""
    numbers = iter(range(num_requests))
    latencies: list[float] = []

    async def run_client(client: httpx.AsyncClient) -> None:
        for number in numbers:
            start = time.perf_counter()
            response = await client.post("/v1/predict", json=images[number % len(images)])
            response.raise_for_status()
            latencies.append(time.perf_counter() - start)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await asyncio.gather(*(run_client(client) for _ in range(clients)))
    return latencies


def measure(name: str, url: str, clients: int, num_requests: int, images: list[dict[str, str]]) -> Load:
    """Measure one contestant under one load."""
    print(f"load {os.getloadavg()[0]:.1f}; {name}, {clients} clients ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    latencies = asyncio.run(send_requests(url, clients, num_requests, images))
    return to_load(name, clients, latencies, time.perf_counter() - start)


def to_load(name: str, clients: int, latencies: list[float], seconds: float) -> Load:
    """Summarize the latencies of requests that took so many seconds together."""
    ordered, number = sorted(latencies), len(latencies)
    p50, p95 = (1000 * ordered[min(int(number * part), number - 1)] for part in (0.5, 0.95))
    return Load(name, clients, number, number / seconds, p50, p95)


def median_loads(loads: list[Load]) -> list[Load]:
    """Take the medians of the rounds of each contestant and load."""
    keys = dict.fromkeys((load.contestant, load.clients, load.requests) for load in loads)
    return [
        Load(*key, *(statistics.median(getattr(load, name) for load in group) for name in FIELDS[3:]))
        for key in keys
        for group in [[load for load in loads if (load.contestant, load.clients, load.requests) == key]]
    ]


def resident_mib(pid: int) -> float:
    """Read the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) / 1024


def soak(url: str, pid: int, clients: int, num_requests: int, images: list[dict[str, str]]) -> dict[str, Any]:
    """Send many requests in parts, and print a line of a table after each: a leak shows as memory that still grows."""
    print("| requests so far | requests/s | p50 ms | p95 ms | memory MiB |\n|---|---|---|---|---|")
    print(f"| 0 | | | | {resident_mib(pid):.0f} |", flush=True)
    rows: list[dict[str, Any]] = [{"requests": 0, "resident_mib": resident_mib(pid)}]
    latencies: list[float] = []
    total = 0.0
    for part in range(1, SOAK_PARTS + 1):
        number = num_requests * part // SOAK_PARTS - len(latencies)
        print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        new = asyncio.run(send_requests(url, clients, number, images))
        seconds = time.perf_counter() - start
        latencies, total = latencies + new, total + seconds
        rows.append(soak_row(f"{len(latencies):,}", to_load("florence2", clients, new, seconds), resident_mib(pid)))
    rows.append(soak_row("all", to_load("florence2", clients, latencies, total), resident_mib(pid)))
    return {"clients": clients, "rows": rows}


def soak_row(name: str, load: Load, memory: float) -> dict[str, Any]:
    """Print a row of the soak's table, and return its numbers."""
    print(f"| {name} | {load.per_second:.1f} | {load.p50_ms:.0f} | {load.p95_ms:.0f} | {memory:.0f} |", flush=True)
    return asdict(load) | {"resident_mib": memory}


def serve_generate(model_path: str, dtype: str) -> None:
    """Serve transformers' `generate` behind a lock: the contestant `generate`, run in a process of its own."""
    import uvicorn
    from fastapi import FastAPI

    import florence2

    model, processor = florence2.load(model_path, dtype=dtype, device="cpu")
    app, lock = FastAPI(), threading.Lock()

    def answer(body: dict[str, str]) -> dict[str, Any]:
        from PIL import Image

        data = base64.b64decode(body["image"].partition(",")[2])
        image = Image.open(io.BytesIO(data)).convert("RGB")
        prompt = florence2.find_task(body["task"]).token
        with lock:
            inputs = processor(text=prompt, images=image, return_tensors="pt").to(model.dtype)
            ids = model.generate(**inputs, max_new_tokens=256, num_beams=1, do_sample=False)
        return {"predictions": [{"text": processor.batch_decode(ids, skip_special_tokens=True)[0]}]}

    # The annotations of a function in a function cannot be read from their names.
    answer.__annotations__ = {"body": dict[str, str], "return": dict[str, Any]}
    app.post("/v1/predict")(answer)
    config = uvicorn.Config(app, port=0, log_level="info", access_log=False)
    uvicorn.Server(config).run()


def commands(model_path: str, dtype: str) -> dict[str, list[str]]:
    """Return the command of each contestant."""
    serve = [sys.executable, "-m", "florence2", "serve", "--model_path", model_path, "--dtype", dtype, "--port", "0"]
    serve += ["--device", "cpu"]
    rival = [sys.executable, "-m", "benchmarks.serving", "--serve_generate", "--model_path", model_path]
    return {
        "florence2": serve,
        "one slot": [*serve, "--batch_size", "1"],
        "generate": [*rival, "--dtype", dtype],
    }


def table(loads: list[Load]) -> str:
    """Write the medians as a Markdown table."""
    lines = ["| clients | server | requests/s | p50 ms | p95 ms |", "|---|---|---|---|---|"]
    for load in sorted(loads, key=lambda each: each.clients):
        numbers = f"{load.per_second:.1f} | {load.p50_ms:.0f} | {load.p95_ms:.0f}"
        lines.append(f"| {load.clients} | {load.contestant} | {numbers} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default="demo")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--num_requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--output", help="JSON file for the result")
    parser.add_argument("--serve_generate", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the contestants in turn, or the soak."""
    arguments = parse_arguments()
    if arguments.serve_generate:
        serve_generate(arguments.model_path, arguments.dtype)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end, too
    images, loads = bodies(), []
    contestants = commands(arguments.model_path, arguments.dtype)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(),
        "machine": platform.processor() or platform.machine(),
    }
    result |= {"cpus": os.cpu_count(), "command": sys.argv[1:]}
    with ExitStack() as stack:
        if arguments.soak:
            contestants = {"florence2": contestants["florence2"]}
        servers = {name: stack.enter_context(server_process(command)) for name, command in contestants.items()}
        for name, (url, _) in servers.items():
            measure(f"{name} (warm-up)", url, 4, 16, images)
        if arguments.soak:
            result["soak"] = soak(*servers["florence2"], max(arguments.clients), arguments.soak, images)
        for _ in range(0 if arguments.soak else arguments.rounds):
            for clients in arguments.clients:
                for name, (url, _) in servers.items():
                    loads.append(measure(name, url, clients, arguments.num_requests, images))
    medians = median_loads(loads)
    if loads:
        print(table(medians))
    result["loads"] = [asdict(load) for load in medians]
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
