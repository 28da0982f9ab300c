"""A batch over real HTTP, with processes that are killed: the service, and the command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from handbill.serving.batch.commands import batch_app
from handbill.serving.client import Client, NotFoundError
from handbill.serving.config import ServingConfig
from handbill.serving.tenants import open_tenants
from handbill.simulations.publisher import RandomPublisher

pytestmark = pytest.mark.integration

# The real app with the real engine in one process, without Ray: so it starts in seconds.
SERVE = """
import sys
from pathlib import Path
import torch, uvicorn
from transformers import AutoTokenizer
from handbill.generator.base_models import load_base, resolve_base
from handbill.serving.api import create_app
from handbill.serving.config import ServingConfig
from handbill.serving.engine import TorchEngine
from handbill.serving.gateway import Gateway
from handbill.serving.registry import Registry, Verifier
from handbill.serving.repository import DatabaseMarks
from handbill.serving.tenants import open_tenants
registry, state, folder, port = sys.argv[1:]
torch.set_num_threads(1)
base = resolve_base(folder)
config = ServingConfig(registry=Path(registry), state=Path(state), max_prompt_tokens=300)
verifier = Verifier(config.registry, base)
model, tokenizer = load_base(base)
engine = TorchEngine(model, tokenizer, load=verifier.adapter, context_tokens=1000)
gateway = Gateway(config, engine=engine, registry=Registry(verifier, DatabaseMarks(config.url)),
                  tenants=open_tenants(config), tokenizer=AutoTokenizer.from_pretrained(base.path))
uvicorn.run(create_app(gateway), port=int(port), log_level="error")
"""
BATCH = "from handbill.cli import main; main()"
ROWS = 60


@pytest.fixture
def shop(tmp_path, tiny_base):
    """A registry with a model, a tenant with a key, and ``start()`` for the service."""
    publisher = RandomPublisher(tmp_path, tiny_base, rank=2)
    publisher.publish("", 1)
    registry = publisher.registry
    state = tmp_path / "serving"
    tenants = open_tenants(ServingConfig(registry=registry, state=state))
    tenants.add("acme")
    api_key = tenants.new_key("acme").reveal()
    tenants.close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []

    class Shop:
        url = f"http://127.0.0.1:{port}"
        key = api_key

        def start(self):
            words = [str(registry), str(state), str(tiny_base.path), str(port)]
            started.append(subprocess.Popen([sys.executable, "-c", SERVE, *words]))
            deadline = time.monotonic() + 60
            while True:
                try:
                    httpx.get(f"{self.url}/healthz")
                except httpx.HTTPError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                else:
                    return started[-1]

        def command(self, *words):
            environment = os.environ | {"HANDBILL_API_KEY": self.key, "HANDBILL_URL": self.url}
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", BATCH, "batch", *words],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            return started[-1]

        def batches(self):
            headers = {"Authorization": f"Bearer {self.key}"}
            return httpx.get(f"{self.url}/v1/copy/batch", headers=headers).json()["data"]

        def until(self, holds):
            deadline = time.monotonic() + 60
            while True:
                rows = self.batches()
                if rows and holds(rows[0]):
                    return rows[0]
                assert time.monotonic() < deadline
                time.sleep(0.05)

    yield Shop()
    for process in started:
        process.kill()
        process.communicate()


def test_a_batch_outlives_its_service_and_its_command(shop, tmp_path):
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    # With seeds: what a random model draws may be a claim that is refused.
    rows = [{"id": f"sku-{n}", "title": f"Lamp {n}", "seed": n} for n in range(ROWS)]
    rows[7]["temperature"] = 9
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ("run", str(file), "--out", str(out), "--set", "max_tokens=40", "--set", "min_tokens=40")
    service, command = shop.start(), shop.command(*run)
    before = shop.until(lambda batch: batch["written"] >= 5)
    command.send_signal(signal.SIGKILL)
    service.send_signal(signal.SIGKILL)
    service.wait()
    assert not out.exists()
    assert before["state"] == "running"
    shop.start()
    again = shop.command(*run)
    printed, errors = again.communicate(timeout=120)
    assert again.returncode == 1, errors  # one row has an error
    found = [json.loads(line) for line in out.open()]
    assert [row["row"] for row in found if "error" in row] == [7], printed
    assert f"{ROWS - 1} written, 1 failed" in printed
    assert [row["row"] for row in found] == list(range(ROWS))
    assert found[7]["error"]["param"] == "temperature"
    assert all(row["result"]["copies"] for row in found if row["row"] != 7)
    (batch,) = shop.batches()
    assert batch["id"] == before["id"]

    def ask(*words):
        words = [*words, "--url", shop.url, "--key", shop.key]
        return CliRunner().invoke(batch_app, words)

    table = tmp_path / "out.parquet"
    assert f"{ROWS} results" in ask("results", batch["id"], "--out", str(table)).output
    assert pq.read_table(table).num_rows == ROWS
    shown = ask("show", batch["id"]).output
    assert shown == f"done: {ROWS - 1} of {ROWS} written, 1 failed\n"
    assert batch["id"] in ask("list").output
    assert json.loads(ask("list", "--json").output)["batches"][0]["state"] == "done"
    assert "deleted" in ask("delete", batch["id"]).output
    assert "404: batch: you have none" in str(ask("show", batch["id"]).exception)
    with Client(shop.url, shop.key) as client:
        made = client.create_batch([{"title": "Lamp"}], defaults={"max_tokens": 2}, key="one")
        assert client.create_batch([{"title": "Lamp"}], key="one").id == made.id
        opened = client.create_batch(more=True)
        client.add_rows(opened.id, 0, [{"title": "Lamp"}, {"title": ""}])
        assert client.start_batch(opened.id).rows == 2
        while any(row.state != "done" for row in client.batches().data):
            time.sleep(0.1)
        results = client.batch_results(opened.id).data
        assert results[0].result.copies
        assert results[1].error.param == "title"
        client.delete_batch(made.id)
        with pytest.raises(NotFoundError):
            client.batch(made.id)
