"""Publishing, rolling back and dying under load: who is written what, and what is lost.

``python benchmarks/serving_publish.py`` takes about four minutes: ``handbill serve`` with two engines, twelve tenants,
twenty requests a second over HTTP, half of them streamed. Every ten seconds all tenants' adapters change,
to the second version and back; every twenty seconds an engine is killed with SIGKILL. The base is a
tiny random model, so that every answer of every tenant and version is known before, token for token.
"""

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from handbill.generator.base_models import make_tiny_base, resolve_base
from handbill.generator.prompts import plain_ids
from handbill.serving.config import ServingConfig
from handbill.serving.registry import Verifier
from handbill.serving.tenants import open_tenants
from handbill.simulations.publisher import RandomPublisher
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "serving_publish.json"
TENANTS: Final = tuple(f"tenant-{number:02}" for number in range(12))
VERSIONS: Final = (1, 2)
PROMPT: Final = "Copy for"
TOKENS: Final = 24
RATE: Final = 20.0  # requests a second, of all tenants
PUBLISH_S: Final = 10.0
KILL_S: Final = 20.0
SEEN_S: Final = 3.0  # from a publication until it must be what is served: poll_s is 1
KILLED_S: Final = 10.0  # a failure so soon after a kill is the kill's
NOTES: Final = (
    "wrong_tenant: answers that are another tenant's text, or nobody's. wrong_version: answers that name a version "
    "that was not published within 3 s before the request began and its end, or whose text is not that version's. "
    "dropped_by_publish: first attempts that failed more than 10 s after a kill. success_rate: of all requests, "
    "with one further attempt of the client's. kills: engines ended by SIGKILL."
)
SERVE: Final = "import typer; from handbill.serving.cli import serve; typer.run(serve)"


@dataclass(kw_only=True)
class Score:
    """What was seen."""

    requests: int = 0
    succeeded: int = 0
    retried: int = 0
    wrong_tenant: int = 0
    wrong_version: int = 0
    dropped_by_publish: int = 0
    publications: int = 0
    kills: int = 0
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Market:
    """Published versions and what each writes."""

    home: Path
    publisher: RandomPublisher
    digests: dict[tuple[str, int], str]
    texts: dict[str, str]  # by digest
    keys: dict[str, str]
    base: Path
    served: list[tuple[float, int]] = field(default_factory=list)  # since when, which version

    def publish(self, version: int) -> None:
        """Serve every tenant this version of its own adapter."""
        self.served.append((time.monotonic(), version))
        for tenant in TENANTS:
            self.publisher.point(tenant, self.digests[tenant, version])

    def possible(self, began: float, ended: float) -> set[int]:
        """Versions an answer may name."""
        found = {version for since, version in self.served if began - SEEN_S <= since <= ended}
        before = [version for since, version in self.served if since <= began - SEEN_S]
        return found | set(before[-1:])


async def expected(config: ServingConfig, base: Any, digests: list[str]) -> dict[str, str]:
    """What each adapter writes after the prompt, by an engine of this process, one at a time."""
    from handbill.generator.base_models import load_base
    from handbill.serving.engine import TorchEngine
    from handbill.serving.sequences import Sampling, Sequence

    model, tokenizer = load_base(base)
    engine = TorchEngine(model, tokenizer, load=Verifier(config.registry, base).adapter)
    prompt = tuple(plain_ids(tokenizer, PROMPT))
    found = {}
    for digest in digests:
        sampling = Sampling(max_tokens=TOKENS, temperature=0.0)
        sequence = Sequence(tenant="t", prompt=prompt, adapter=digest, sampling=sampling)
        found[digest] = "".join([delta.text async for delta in engine.submit(sequence)])
    engine.close()
    return found


def prepare(home: Path) -> Market:
    """Make the base, two versions for each tenant, and keys."""
    base = resolve_base(str(make_tiny_base(home / "base")))
    publisher = RandomPublisher(home, base)
    numbers = [(tenant, version) for tenant in TENANTS for version in VERSIONS]
    digests = {
        (tenant, version): publisher.add(tenant, version, seed=seed)
        for seed, (tenant, version) in enumerate(numbers)
    }
    config = ServingConfig(registry=publisher.registry, state=home / "serving", base=str(base.path))
    tenants = open_tenants(config)
    keys = {}
    for tenant in TENANTS:
        tenants.add(tenant)
        keys[tenant] = tenants.new_key(tenant).reveal()
    tenants.close()
    texts = asyncio.run(expected(config, base, list(digests.values())))
    if len(set(texts.values())) != len(texts):
        raise SystemExit("two adapters write the same: nothing could be told apart")
    return Market(
        home=home, publisher=publisher, digests=digests, texts=texts, keys=keys, base=base.path
    )


async def ask(client: httpx.AsyncClient, key: str, stream: bool) -> tuple[str, str]:
    """Text and fingerprint of one answer."""
    body = {"model": "default", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    headers = {"Authorization": f"Bearer {key}"}
    if not stream:
        answer = await client.post("/v1/completions", json=body, headers=headers)
        answer.raise_for_status()
        found = answer.json()
        return found["choices"][0]["text"], found["system_fingerprint"]
    text, fingerprint, ended = "", "", False
    body["stream"] = True
    async with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                piece = httpx.Response(200, text=line.removeprefix("data: ")).json()
                if "error" in piece:
                    raise httpx.StreamError(piece["error"]["message"])
                fingerprint = piece["system_fingerprint"]
                text += "".join(choice["text"] for choice in piece["choices"])
    if not ended:
        raise httpx.StreamError("the stream broke off")
    return text, fingerprint


async def load(market: Market, url: str, score: Score, seconds: float, kills: list[float]) -> None:
    """Requests at a fixed rate, whoever waits for whom."""
    draws = random.Random(0)
    running: set[asyncio.Task[None]] = set()

    async def one(client: httpx.AsyncClient, tenant: str, stream: bool) -> None:
        score.requests += 1
        for attempt in range(2):
            began = time.monotonic()
            try:
                answer = await ask(client, market.keys[tenant], stream)
            except (httpx.HTTPError, httpx.StreamError) as error:
                score.retried += not attempt
                status = getattr(getattr(error, "response", None), "status_code", "")
                score.failures.append(f"{type(error).__name__} {status}".strip())
                after = time.monotonic()
                if not attempt and not any(began - KILLED_S <= kill <= after for kill in kills):
                    score.dropped_by_publish += 1
                await asyncio.sleep(1.0)
                continue
            score.succeeded += 1
            score.seconds.append(time.monotonic() - began)
            judge(market, score, tenant, answer, (began, time.monotonic()))
            return

    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            task = asyncio.create_task(one(client, draws.choice(TENANTS), draws.random() < 0.5))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(draws.expovariate(RATE))
        await asyncio.gather(*running)


def judge(
    market: Market,
    score: Score,
    tenant: str,
    answer: tuple[str, str],
    between: tuple[float, float],
) -> None:
    """Whose text is it, and of a version that may be served?"""
    text, fingerprint = answer
    kind, version, short = fingerprint.split("-")[:3]
    own = {number: market.digests[tenant, number] for number in VERSIONS}
    if kind != "tenant" or text not in [market.texts[digest] for digest in own.values()]:
        score.wrong_tenant += 1
        return
    number = int(version.removeprefix("v"))
    named = own[number].removeprefix("sha256:").startswith(short)
    right = market.texts[own[number]] == text
    if not (named and right and number in market.possible(*between)):
        score.wrong_version += 1


def engines(service: int) -> list[psutil.Process]:
    """The engine replicas' processes of a service: Ray's, which inherit its variable."""
    found = []
    for process in psutil.process_iter():
        try:
            name = " ".join(process.cmdline())
            mine = (
                f"HANDBILL_BENCHMARK={service}".encode()
                in Path(f"/proc/{process.pid}/environ").read_bytes()
            )
        except (OSError, psutil.Error):
            continue
        if mine and "EngineReplica" in name:
            found.append(process)
    return found


async def disturb(market: Market, score: Score, seconds: float, kills: list[float]) -> None:
    """Publish, roll back and kill on time."""
    started, turn = time.monotonic(), 0
    draws = random.Random(1)
    while (now := time.monotonic() - started) < seconds:
        turn += 1
        await asyncio.sleep(max(0.0, turn * PUBLISH_S - now))
        market.publish(VERSIONS[turn % 2])
        score.publications += 1
        if turn % round(KILL_S / PUBLISH_S) == 0:
            await asyncio.sleep(PUBLISH_S / 2)
            there = engines(os.getpid())
            if len(there) > 1:  # the other one takes over
                kills.append(time.monotonic())
                draws.choice(there).send_signal(signal.SIGKILL)
                score.kills += 1


def measure(home: Path, seconds: float) -> Score:
    """Serve, load, disturb, judge."""
    market = prepare(home)
    market.publish(VERSIONS[0])
    environment = os.environ | {
        "HANDBILL_BENCHMARK": str(os.getpid()),
        "HANDBILL_SERVING_THREADS": "1",
        "HANDBILL_SERVING_REQUESTS_PER_MINUTE": "100000",
        "HANDBILL_SERVING_BURST": "1000",
        "HANDBILL_SERVING_CONCURRENT": "1000",
    }
    options = ["--home", str(home), "--base", str(market.base), "--port", "0", "--replicas", "2"]
    service = subprocess.Popen(
        [sys.executable, "-c", SERVE, *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        for line in service.stdout or ():
            if line.startswith("ready: curl "):
                break
        url = line.split()[2].removesuffix("/v1/copy")
        score, kills = Score(), list[float]()

        async def both() -> None:
            await asyncio.gather(
                load(market, url, score, seconds, kills), disturb(market, score, seconds, kills)
            )

        asyncio.run(both())
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)
    return score


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        score = measure(Path(home), asked.seconds)
    waits = sorted(score.seconds)
    metrics = {
        "requests": score.requests,
        "wrong_version": score.wrong_version,
        "wrong_tenant": score.wrong_tenant,
        "dropped_by_publish": score.dropped_by_publish,
        "success_rate": round(score.succeeded / score.requests, 5),
        "publications": score.publications,
        "kills": score.kills,
        "retried": score.retried,
        "answer_s_p50": round(waits[len(waits) // 2], 3),
        "answer_s_p95": round(waits[int(0.95 * len(waits))], 3),
    }
    failures = {text: score.failures.count(text) for text in sorted(set(score.failures))}
    print(metrics, failures)
    write_result(
        asked.results,
        command=f"python benchmarks/serving_publish.py --seconds {asked.seconds:g}",
        metrics=metrics,
        table=[{"failure": text, "times": times} for text, times in failures.items()],
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
