"""The whole service under load: the openai client, HTTP, Ray Serve, the gateway and one engine.

``python benchmarks/serving_load.py`` takes about five minutes on a quiet machine: SmolLM2-135M, eight tenants
with an adapter of rank 8 on all linear layers each, prompts of 64 tokens, answers of 32, all streamed. From 1 to 64 streams
at once; then one tenant alone, and the same tenant while another keeps 64 streams open.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import openai

from handbill.generator.base_models import resolve_base
from handbill.serving.config import ServingConfig
from handbill.serving.tenants import open_tenants
from handbill.simulations.publisher import RandomPublisher
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "serving_load.json"
SERVE: Final = "import typer; from handbill.serving.cli import serve; typer.run(serve)"
TENANTS: Final = tuple(f"tenant-{number}" for number in range(8))
QUIET, LOUD = TENANTS[0], TENANTS[1]
AT_ONCE: Final = (1, 2, 4, 8, 16, 32, 64)
TOKENS: Final = 32
PROMPT: Final = " lamp" * 64
FLOOD: Final = 64
ALONE: Final = 12  # requests of the quiet tenant, one after the other
NOTES: Final = (
    "tokens_per_s.cN: tokens of all answers over the seconds from the first request to the last token, N streams at "
    "once, each asking again until there are enough. ttft_ms: from sending a request to its first token. "
    "inter_ms: between two tokens of one stream. flood_p95_ratio: a tenant's 95th percentile of seconds for a whole answer while "
    "another keeps 64 streams open, over the same alone. Adapters were loaded before. Times include the client's process, which "
    "shares the two cores."
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One stream: seconds to its first token, between its tokens, and in all."""

    first_s: float
    between_s: tuple[float, ...]
    all_s: float


def prepare(home: Path, base_name: str) -> dict[str, str]:
    """Publish an adapter for each tenant; their keys."""
    base = resolve_base(base_name)
    publisher = RandomPublisher(home, base, layers=tuple(range(30)), rank=8, scale=0.02)
    config = ServingConfig(registry=publisher.registry, state=home / "serving", base=base_name)
    tenants, keys = open_tenants(config), {}
    for seed, tenant in enumerate(TENANTS):
        publisher.publish(tenant, 1, seed=seed)
        tenants.add(tenant)
        keys[tenant] = tenants.new_key(tenant).reveal()
    tenants.close()
    return keys


async def stream(client: openai.AsyncOpenAI) -> Seen:
    """Ask once and read to the end."""
    started = time.perf_counter()
    answer: Any = await client.completions.create(
        model="default",
        prompt=PROMPT,
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        extra_body={"min_tokens": TOKENS},
    )
    times = [
        time.perf_counter() async for piece in answer if piece.choices and piece.choices[0].text
    ]
    between = tuple(after - before for before, after in pairwise(times))
    return Seen(times[0] - started, between, times[-1] - started)


async def together(clients: Sequence[openai.AsyncOpenAI], at_once: int) -> dict[str, float]:
    """So many streams at once, two rounds of them and eight at least."""
    left = iter(range(max(8, 2 * at_once)))

    async def ask_on(number: int) -> list[Seen]:
        return [await stream(clients[number % len(clients)]) for _ in left]

    started = time.perf_counter()
    seen = [one for many in await asyncio.gather(*map(ask_on, range(at_once))) for one in many]
    seconds = time.perf_counter() - started
    firsts = [one.first_s for one in seen]
    between = [gap for one in seen for gap in one.between_s]
    return {
        "streams": at_once,
        "requests": len(seen),
        "tokens_per_s": round(TOKENS * len(seen) / seconds, 1),
        "ttft_ms_p50": round(1000 * statistics.median(firsts)),
        "ttft_ms_p95": round(1000 * percentile(firsts, 0.95)),
        "inter_ms_p95": round(1000 * percentile(between, 0.95)),
    }


async def quiet_beside_loud(clients: dict[str, openai.AsyncOpenAI]) -> tuple[float, float]:
    """The 95th percentile of a tenant's seconds: alone, and beside a flood."""
    alone = [(await stream(clients[QUIET])).all_s for _ in range(ALONE)]

    async def flood() -> None:
        while True:
            await stream(clients[LOUD])

    loud = [asyncio.create_task(flood()) for _ in range(FLOOD)]
    await asyncio.sleep(5)
    beside = [(await stream(clients[QUIET])).all_s for _ in range(ALONE)]
    for task in loud:
        task.cancel()
    await asyncio.gather(*loud, return_exceptions=True)
    return percentile(alone, 0.95), percentile(beside, 0.95)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not pass."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure(url: str, keys: dict[str, str]) -> tuple[list[dict[str, float]], float, float]:
    """Everything, against a service that runs."""
    clients = {
        tenant: openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, timeout=300)
        for tenant, key in keys.items()
    }
    for client in clients.values():  # loads its adapter
        await stream(client)
    rows = []
    for at_once in AT_ONCE:
        rows.append(await together(list(clients.values()), at_once))
        print(rows[-1], flush=True)
    alone, beside = await quiet_beside_loud(clients)
    return rows, alone, beside


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        keys = prepare(home, asked.base)
        environment = os.environ | {
            "HANDBILL_SERVING_REQUESTS_PER_MINUTE": "100000",
            "HANDBILL_SERVING_BURST": "1000",
            "HANDBILL_SERVING_CONCURRENT": "1000",
            "HANDBILL_SERVING_PREFIX_CACHE_BYTES": "0",  # all prompts are alike
        }
        options = ["--home", folder, "--base", asked.base, "--port", "0"]
        service = subprocess.Popen(
            [sys.executable, "-c", SERVE, *options],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            line = next(line for line in service.stdout or () if line.startswith("ready: curl "))
            url = line.split()[2].removesuffix("/v1/copy")
            rows, alone, beside = asyncio.run(measure(url, keys))
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)
    metrics = {
        f"{name}.c{row['streams']}": row[name]
        for row in rows
        for name in ("tokens_per_s", "ttft_ms_p50", "ttft_ms_p95", "inter_ms_p95")
    }
    metrics |= {
        "flood_p95_ratio": round(beside / alone, 2),
        "alone_s_p95": round(alone, 2),
        "beside_flood_s_p95": round(beside, 2),
    }
    print(metrics)
    write_result(
        asked.results,
        command="python benchmarks/serving_load.py",
        metrics=metrics,
        table=rows,
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
