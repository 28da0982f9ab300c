"""A running service with a registry to publish into."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest
from typer.testing import CliRunner

from handbill.generator.base_models import make_tiny_base, resolve_base
from handbill.serving.cli import tenants_app
from handbill.simulations.publisher import RandomPublisher

SERVE = "import typer; from handbill.serving.cli import serve; typer.run(serve)"


@dataclass
class Home:
    """A home with a registry to publish into, and the running service's URL."""

    root: Path
    publisher: RandomPublisher
    url: str = ""

    def publish(self, tenant: str, number: int) -> str:
        return self.publisher.publish(tenant, number)

    def point(self, tenant: str, digest: str) -> None:
        self.publisher.point(tenant, digest)

    def client(self, tenant: str) -> openai.OpenAI:
        key = (self.root / "shops" / tenant / "api_key").read_text().strip()
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def processes(self) -> list[psutil.Process]:
        """The service and everything it started, known by a variable they inherit."""
        found = []
        for process in psutil.process_iter():
            try:
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                continue
            # Ray's processes rename themselves over part of their environment.
            if any(f"HANDBILL_TEST_{i}={self.root}".encode() in environ for i in range(5)):
                found.append(process)
        return found


@contextmanager
def running(root, *more, engine="torch"):
    """A service with a global model and one of acme's own; bolt has none."""
    hidden = 128 if engine == "vllm" else 64  # vLLM's CPU build has no smaller heads than 32
    base = resolve_base(str(make_tiny_base(root / "base", hidden=hidden)))
    home = Home(root, RandomPublisher(root, base))
    home.publish("", 1)
    home.publisher.publish("acme", 1, seed=7)
    run = CliRunner()
    for tenant in ("acme", "bolt"):
        save = root / "shops" / tenant / "api_key"
        for words in (["add", tenant], ["key", tenant, "--save", str(save)]):
            result = run.invoke(tenants_app, [*words, "--home", str(root)])
            assert result.exit_code == 0, result.output
        assert save.stat().st_mode & 0o777 == 0o600
        assert "hb_" not in result.output
    options = ["--home", str(root), "--base", str(base.path), "--port", "0", *more]
    options += ["--engine", engine]
    environment = os.environ | {
        **{f"HANDBILL_TEST_{i}": str(root) for i in range(5)},
        "HANDBILL_SERVING_CONTEXT_TOKENS": "1000",
        "HANDBILL_SERVING_MAX_TOKENS": "900",
        "HANDBILL_SERVING_THREADS": "1",
        "HANDBILL_SERVING_MAX_RANK": "8",
        "HANDBILL_SERVING_POLL_S": "0.2",
    }
    log = (root / "service.log").open("w")
    service = subprocess.Popen(
        [sys.executable, "-c", SERVE, *options],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
    )
    line = service.stdout.readline()
    while line.startswith("(raylet)") or "\x1b" in line:  # Ray's own words, on a busy machine
        line = service.stdout.readline()
    assert line.startswith("ready: curl http://127.0.0.1:"), (root / "service.log").read_text()
    home.url = line.split()[2].removesuffix("/v1/copy")
    yield home
    service.send_signal(signal.SIGTERM)
    assert service.wait(60) == 0
    deadline = time.monotonic() + 10
    while home.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert home.processes() == []
    service.stdout.close()
    log.close()


@pytest.fixture(scope="package")
def home(tmp_path_factory, engine_kind):
    with running(tmp_path_factory.mktemp("home"), engine=engine_kind) as one:
        yield one


@pytest.fixture(scope="module")
def two_engines(tmp_path_factory):
    with running(tmp_path_factory.mktemp("two"), "--replicas", "2") as one:
        yield one
