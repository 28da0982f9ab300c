"""A running service with a registry to publish into."""

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from typer.testing import CliRunner

from handbill.generator.base_models import make_tiny_base, resolve_base
from handbill.serving.cli import tenants_app
from handbill.simulations.publisher import RandomPublisher

SERVE = "import typer; from handbill.serving.cli import serve; typer.run(serve)"


class Collector:
    """An OTLP/HTTP receiver: the bodies that came, and the spans in them by service."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                zipped = self.headers.get("Content-Encoding") == "gzip"
                bodies.append(gzip.decompress(body) if zipped else body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> list[tuple[str, Span]]:
        found = []
        for body in list(self.bodies):
            for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {a.key: a.value.string_value for a in each.resource.attributes}
                found += [
                    (names["service.name"], span)
                    for scope in each.scope_spans
                    for span in scope.spans
                ]
        return found


@dataclass
class Home:
    """A home with a registry to publish into, and the running service's URL."""

    root: Path
    publisher: RandomPublisher
    collector: Collector
    url: str = ""
    page: str = ""  # the operator's

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
    home = Home(root, RandomPublisher(root, base), Collector())
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        page = free.getsockname()[1]
    home.page = f"http://127.0.0.1:{page}"
    options = ["--home", str(root), "--base", str(base.path), "--port", "0", *more]
    options += ["--engine", engine, "--metrics-port", str(page)]
    environment = os.environ | {
        **{f"HANDBILL_TEST_{i}": str(root) for i in range(5)},
        "HANDBILL_SERVING_CONTEXT_TOKENS": "1000",
        "HANDBILL_SERVING_MAX_TOKENS": "900",
        "HANDBILL_SERVING_THREADS": "1",
        "HANDBILL_SERVING_MAX_RANK": "8",
        "HANDBILL_SERVING_POLL_S": "0.2",
        "HANDBILL_SERVING_TRACES": home.collector.url,
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
    home.collector.server.shutdown()
    home.collector.server.server_close()


@pytest.fixture(scope="package")
def home(tmp_path_factory, engine_kind):
    with running(tmp_path_factory.mktemp("home"), engine=engine_kind) as one:
        yield one


@pytest.fixture(scope="module")
def two_engines(tmp_path_factory):
    with running(tmp_path_factory.mktemp("two"), "--replicas", "2") as one:
        yield one
