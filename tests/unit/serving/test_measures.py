"""Figures for Prometheus and the access log: what happened, and nothing of what was written."""

import asyncio
import json
import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from handbill.errors import InputError
from handbill.serving.config import ServingConfig
from handbill.serving.service import start_service

SECRET = "a shopper who reads at night"


def figures(text):
    """Samples by name and the values of their labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def scraped(service, work):
    """What the page shows while the gateway runs, after some work."""
    service.gateway.start()
    async with service.client() as client:
        await work(client)
    port = service.config.metrics_port
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    service.gateway.measures.close()
    return figures(answer.text)


def test_the_page_counts_requests_tokens_and_times(make_service):
    service = make_service(metrics_port=free_port())
    chat = service.bodies["/v1/chat/completions"] | {"max_tokens": 4, "temperature": 0}

    async def work(client):
        for _ in range(2):
            assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
        too_long = {"prompt": "x" * 999, "max_tokens": 700}
        assert (await client.post("/v1/completions", json=too_long)).status_code == 400

    found = asyncio.run(scraped(service, work))
    assert found["handbill_requests_total", "/v1/chat/completions", "done"] == 2
    assert found["handbill_requests_total", "/v1/completions", "refused"] == 1
    used = service.usage()
    written = sum(row.completion_tokens for row in used)
    assert found["handbill_tokens_total", "completion"] == written > 0
    assert found["handbill_tokens_total", "prompt"] == sum(row.prompt_tokens for row in used)
    assert found["handbill_first_piece_seconds_count", "/v1/chat/completions"] == 2
    assert found[("handbill_engine_up",)] == 1
    assert found["handbill_engine_tokens_total", ""] == written
    assert found["handbill_engine_running", ""] == 0
    assert found["handbill_engine_adapters", ""] == 1


def test_the_page_shows_how_many_rows_a_step_had_and_which_adapters_made_room(make_service):
    service = make_service(metrics_port=free_port())
    engine = service.engine.engine
    engine._bank._slots = 1
    body = {"prompt": "a lamp", "max_tokens": 5, "n": 3, "logit_bias": {"2": -100}}

    async def work(_):
        for tenant in ("acme", "bolt", "acme"):
            async with service.client(tenant) as one:
                assert (await one.post("/v1/completions", json=body)).status_code == 200

    found = asyncio.run(scraped(service, work))
    assert found["handbill_engine_adapter_loads_total", ""] == 3
    assert found["handbill_engine_adapter_evictions_total", ""] == 2
    buckets = {
        le: found["handbill_engine_batch_rows_bucket", "", le] for le in ("2.0", "4.0", "+Inf")
    }
    assert buckets["2.0"] == 0
    assert buckets["4.0"] == buckets["+Inf"] == found["handbill_engine_batch_rows_count", ""] >= 15
    assert found["handbill_engine_batch_rows_sum", ""] == 3 * buckets["+Inf"]


def test_an_engine_that_does_not_answer_is_down(make_service):
    service = make_service(metrics_port=free_port())

    async def work(_):
        service.engine.engine.close()

    found = asyncio.run(scraped(service, work))
    assert found[("handbill_engine_up",)] == 0
    assert ("handbill_engine_running", "") not in found


def test_the_access_log_has_a_line_a_request_and_no_word_of_it(make_service, tmp_path):
    log = tmp_path / "access.log"
    service = make_service(access_log=str(log))
    ask = {"title": "Oak desk lamp", "shopper": SECRET, "max_tokens": 3, "shopper_key": "sh-4711"}
    answer = service.post("/v1/copy", ask)
    log.rename(tmp_path / "access.log.1")
    service.post("/v1/copy", ask, tenant="bolt")
    (first,) = (tmp_path / "access.log.1").read_text().splitlines()
    (second,) = log.read_text().splitlines()
    facts = json.loads(first)
    assert facts["tenant"] == "acme"
    assert facts["request"] == answer.headers["x-request-id"]
    assert facts["artifact"] == service.digests["acme"]
    assert json.loads(second)["tenant"] == "bolt"
    for text in (SECRET, "lamp", "sh-4711", service.keys["acme"], service.keys["acme"][12:]):
        assert text not in first


def test_what_cannot_be_opened_is_said_at_the_start(base, tmp_path):
    how = {"registry": tmp_path / "r", "state": tmp_path / "s", "base": str(base.path)}
    with pytest.raises(InputError, match="access_log"):
        start_service(ServingConfig(**how, access_log=str(tmp_path / "no" / "log")))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="--metrics-port"):
            start_service(ServingConfig(**how, port=0, metrics_port=port))
