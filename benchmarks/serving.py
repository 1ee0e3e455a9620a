"""Measures responses per second and latency of the endpoint by number of clients, and its behaviour under overload.

`clca serve` runs in a separate process on a free port of this machine. The clients run in this process; each sends its
next image when it has received the previous response, and every response is compared with the output of the model for
that image alone. The part "beyond" is a second server with a short queue and more clients than it accepts, which ignore
Retry-After. Clients and server share the cores of the machine.

python benchmarks/serving.py RUN IMAGES [--clients 1 8 32] [--seconds 20] [--out serving.json]
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import httpx
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import clca
from clca.data.sources.photographs import find_images
from clca.errors import ClcaError, WorkError
from clca.evaluation import predict
from clca.system import timing as measure

PRIVATE = ("run", "images", "out")  # settings that hold paths


@dataclass
class Settings:
    """Run, images and load.

    Args:
        run: Run folder.
        images: Folder of images.
        clients: Numbers of concurrent clients, one row each.
        seconds: Duration of a row.
        different: Number of different images that are sent.
        max_batch, wait_ms, threads, device, precision: Settings of the server.
        beyond_queue: Queue length of the second server.
        beyond_clients: Clients of the second server.
        tolerance: Largest difference of a probability for which a response counts as correct.
        out: JSON file for the results.
    """

    run: Annotated[str, tyro.conf.Positional]
    images: Annotated[str, tyro.conf.Positional]
    clients: tuple[int, ...] = (1, 8, 32)
    seconds: float = 20.0
    different: int = 64
    max_batch: int = 16
    wait_ms: float = 5.0
    threads: int | None = None
    device: str = "auto"
    precision: str = "no"
    beyond_queue: int = 16
    beyond_clients: int = 64
    tolerance: float = 1e-3
    out: Path | None = None


@dataclass
class Row:
    """Results for one number of clients."""

    clients: int
    queue: int
    answered: int = 0
    wrong: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    answered_per_second: float = 0.0
    p50_ms: float = float("nan")
    p99_ms: float = float("nan")
    images_a_batch: float = float("nan")


@contextmanager
def server(settings: Settings, queue: int) -> Iterator[str]:
    """Run a server in a separate process; yields its address."""
    program = "import sys; from clca.cli.commands.serve import run; sys.exit(run(sys.argv[1:]))"
    options = ["--port", "0", "--queue", str(queue), "--max-batch", str(settings.max_batch)]
    options += ["--wait-ms", str(settings.wait_ms), "--device", settings.device, "--precision", settings.precision]
    options += [] if settings.threads is None else ["--threads", str(settings.threads)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, settings.run, *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " at " not in line:
            raise WorkError("the server did not start: see its message above")
        yield line.split(" at ")[1].split(";")[0]
    finally:
        process.terminate()
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise WorkError("the server did not stop") from None
    if code != 0:
        raise WorkError(f"the server ended with exit code {code}")


def is_own(answer: dict[str, Any], expected: dict[str, float], tolerance: float) -> bool:
    """Whether a response equals the output of the model for this image."""
    (result,) = answer["results"]
    found = dict(zip(result["classes"], result["probabilities"], strict=True))
    return bool(found) and all(abs(value - expected[name]) <= tolerance for name, value in found.items())


async def ask(
    address: str, clients: int, seconds: float, images: list[bytes], expected: list[dict[str, float]], row: Row,
    tolerance: float,
) -> None:  # fmt: skip
    """Fill a row: every client sends one image after another until the time is over."""
    latencies: list[float] = []
    codes: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits, trust_env=False) as client:
        await client.post("/v1/predict", files={"images": images[0]})  # the first takes longer
        began = perf_counter()

        async def one(number: int) -> None:
            turn = number
            while perf_counter() - began < seconds:
                k = turn % len(images)
                turn += clients
                sent = perf_counter()
                answer = await client.post("/v1/predict", files={"images": images[k]}, params={"top_k": 5})
                codes[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    latencies.append(perf_counter() - sent)
                    row.wrong += not is_own(answer.json(), expected[k], tolerance)
                else:
                    await asyncio.sleep(0.02)  # retries soon, but does not flood the server

        await asyncio.gather(*(one(number) for number in range(clients)))
        elapsed = perf_counter() - began
        lines = (await client.get("/metrics")).text.splitlines()
    row.codes, row.answered = dict(codes), len(latencies)
    row.answered_per_second = len(latencies) / elapsed
    if latencies:
        row.p50_ms, row.p99_ms = (float(value) for value in 1000 * np.quantile(latencies, (0.5, 0.99)))
    row.images_a_batch = _sum_of(lines, "clca_batch_images_sum") / max(1.0, _sum_of(lines, "clca_batch_images_count"))


def _sum_of(lines: list[str], name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def main(settings: Settings) -> None:
    paths = find_images([settings.images])[: settings.different]
    model = clca.from_pretrained(settings.run)
    if model.classes is None:
        raise ClcaError(f"{settings.run} has no class names")
    answers = predict(
        model, paths, len(model.classes), batch_size=1, device=settings.device, precision=settings.precision
    )
    found = [(path, answer) for path, answer in zip(paths, answers, strict=True) if answer.error is None]
    if not found:
        raise ClcaError(f"{settings.images}: none of the images can be read")
    images = [path.read_bytes() for path, _ in found]
    expected = [dict(zip(answer.classes, answer.probabilities, strict=True)) for _, answer in found]
    rows = []
    for clients in settings.clients:  # a separate server, so that its counters are those of this row
        row = Row(clients, queue=2 * max(settings.clients))
        with server(settings, row.queue) as address:
            asyncio.run(ask(address, clients, settings.seconds, images, expected, row, settings.tolerance))
        rows.append(row)
    beyond = Row(settings.beyond_clients, settings.beyond_queue)
    with server(settings, beyond.queue) as address:
        asyncio.run(ask(address, beyond.clients, settings.seconds, images, expected, beyond, settings.tolerance))
    show(rows, beyond)
    if settings.out is not None:
        packages = {name: version(name) for name in ("fastapi", "uvicorn", "starlette", "httpx")}
        content = {
            "command": measure.command(),
            "machine": measure.machine(),
            "versions": {**measure.versions(), **packages},
            "model": {"backbone": model.config.backbone, "reduction": model.config.reduction,
                      "keep_rate": model.keep_rate, "gmacs": clca.cost(model).gmacs},
            "images": {"count": len(images), "mean_bytes": sum(map(len, images)) / len(images)},
            "settings": {name: asdict(settings)[name] for name in sorted(asdict(settings)) if name not in PRIVATE},
            "rows": [asdict(row) for row in rows],
            "beyond": asdict(beyond),
        }  # fmt: skip
        settings.out.write_text(json.dumps(content, indent=2) + "\n")
    if any(row.wrong or set(row.codes) - {"200"} for row in rows) or beyond.wrong or set(beyond.codes) - {"200", "429"}:
        raise WorkError("a response was wrong, or a request failed: see the table")


def show(rows: list[Row], beyond: Row) -> None:
    table = Table("clients", "queue", "answers/s", "p50 ms", "p99 ms", "images a batch", "wrong", "requests by code")
    for row in (*rows, beyond):
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(row.codes.items()))
        numbers = (
            f"{row.answered_per_second:.1f}",
            f"{row.p50_ms:.0f}",
            f"{row.p99_ms:.0f}",
            f"{row.images_a_batch:.1f}",
        )
        table.add_row(str(row.clients), str(row.queue), *numbers, str(row.wrong), codes)
    Console().print(table)


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except (ClcaError, WorkError) as error:
        sys.exit(f"serving.py: {error}")
