"""``/v1/copy/batch``: rows in, results out, whoever dies in between; live requests come first."""

import asyncio
import sqlite3
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from handbill.serving.asking import begin_copy
from handbill.serving.batch.repository import BatchRepository
from handbill.serving.batch.runner import LEASE_S, BatchRunner
from handbill.serving.orm import utc_now
from handbill.serving.sequences import EngineStats
from handbill.serving.tenants import Caller

ACME = Caller(tenant="acme", key="k" * 8)
COPY = {"max_tokens": 3, "temperature": 0.9}  # without a seed: a row gets its own


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("handbill.serving.batch.runner._LOOK_S", 0.02)


def titles(count, **fields):
    return [{"id": f"sku-{n}", "title": f"Lamp {n}", **fields} for n in range(count)]


def make(service, rows, defaults=COPY, tenant="acme", **fields):
    body = {"rows": rows, "defaults": defaults, **fields}
    answer = service.post("/v1/copy/batch", body, tenant=tenant)
    assert answer.status_code == 201, answer.text
    return answer.json()


def show(service, batch, tenant="acme"):
    return service.send("GET", f"/v1/copy/batch/{batch}", tenant=tenant).json()


def results(service, batch, **query):
    path = f"/v1/copy/batch/{batch}/results"
    return service.send("GET", path, params=query).json()


def work(service, until, *, seconds=20.0, beside=None):
    """Run a runner until something holds."""

    async def main():
        runner = BatchRunner(service.gateway, service.gateway.batches)
        runner.start()
        try:
            live = asyncio.create_task(beside(runner)) if beside else None
            deadline = time.monotonic() + seconds
            while not await asyncio.to_thread(until):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            return await live if live else None
        finally:
            await runner.stop()

    return asyncio.run(main())


def done(service, *batches):
    shown = service.gateway.batches.list
    return lambda: all(
        row["state"] == "done"
        for tenant in ("acme", "bolt")
        for row in shown(tenant)
        if not batches or row["id"] in batches
    )


def test_every_row_is_written_and_a_bad_one_says_why(service):
    rows = [*titles(5), {"id": "bad", "title": " "}, {"id": "worse"}, {"id": 7, "title": "x"}]
    rows += [
        {"title": "x", "stream": True},
        {"title": "x", "temperature": 9},
        {"title": "n", "n": 2},
    ]
    batch = make(service, rows)
    assert (batch["state"], batch["rows"], batch["failed"]) == ("running", 11, 3)
    work(service, done(service))
    batch = show(service, batch["id"])
    assert (batch["state"], batch["written"], batch["failed"]) == ("done", 6, 5)
    first = results(service, batch["id"], limit=5)
    rest = results(service, batch["id"], after=first["next"])
    assert rest["next"] is None
    found = first["data"] + rest["data"]
    assert [row["row"] for row in found] == list(range(11))
    assert [row["id"] for row in found[:7]] == [f"sku-{n}" for n in range(5)] + ["bad", "worse"]
    assert all(row["result"]["version"] == service.digests["acme"] for row in found[:5])
    assert all(row["result"]["copies"][0]["text"] for row in found[:5])
    assert len(found[10]["result"]["copies"]) == 2
    assert [row["error"]["param"] for row in found[5:10]] == [
        "title",
        "title",
        "id",
        "stream",
        "temperature",
    ]
    usage = service.usage()
    assert [row.endpoint for row in usage] == ["/v1/copy/batch"] * 6
    assert {row.request_id.partition("-")[0] for row in usage} == {"batch"}


def test_rows_that_are_left_when_the_key_ends_are_refused(service):
    batch = make(service, titles(6))["id"]
    key = service.keys["acme"]
    submit = service.gateway.engine.submit

    def then_revoked(sequence):
        service.tenants.revoke(key.split("_")[1])
        return submit(sequence)

    service.gateway.engine.submit = then_revoked
    service.gateway.config = replace(service.config, batch_rows=1)
    work(service, done(service))
    service.keys["acme"] = service.tenants.new_key("acme").reveal()
    found = results(service, batch)["data"]
    assert "result" in found[0]  # was begun before
    assert [row["error"]["code"] for row in found[1:]] == ["invalid_api_key"] * 5
    assert [row.outcome for row in service.usage()] == ["done"]


def test_the_same_rows_are_taken_once_and_a_gap_is_refused(service):
    def add(offset, rows):
        body = {"offset": offset, "rows": rows}
        return service.post(f"/v1/copy/batch/{batch['id']}/rows", body)

    batch = make(service, [], key="spring", more=True)
    assert batch["state"] == "open"
    for _ in range(2):
        again = make(service, titles(2), key="spring")
        assert (again["id"], again["rows"], again["state"]) == (batch["id"], 2, "running")
    batch = make(service, [], key="summer", more=True)
    for offset, count, there in ((0, 3, 3), (0, 3, 3), (2, 4, 6), (6, 1, 7)):
        assert add(offset, titles(count)).json()["rows"] == there
    gap = add(9, titles(1))
    assert gap.status_code == 409
    assert "go on with 7" in gap.json()["error"]["message"]
    for _ in range(2):
        started = service.post(f"/v1/copy/batch/{batch['id']}/start", {}).json()
        assert started["state"] == "running"
    assert add(7, titles(1)).status_code == 409
    assert add(6, titles(1)).status_code == 200
    empty = make(service, [], more=True)["id"]
    assert service.post(f"/v1/copy/batch/{empty}/start", {}).status_code == 400


def test_limits_of_rows_batches_and_bodies(make_service):
    service = make_service(batch_max_rows=3, batch_body_bytes=2000, max_body_bytes=100)
    assert service.post("/v1/copy/batch", {"rows": titles(4)}).status_code == 409
    assert service.post("/v1/copy/batch", {"rows": titles(90)}).status_code == 413
    refused = service.post("/v1/copy/batch", {"rows": titles(1), "defaults": {"scenario": 3}})
    assert refused.json()["error"]["param"] == "defaults"
    for _ in range(20):
        make(service, [], more=True)
    answer = service.post("/v1/copy/batch", {"more": True})
    assert answer.status_code == 409
    assert "unfinished" in answer.json()["error"]["message"]


def test_another_runner_goes_on_where_one_died_and_writes_the_same(service):
    once = make(service, titles(12))["id"]
    work(service, done(service))
    wanted = [row["result"]["copies"][0]["text"] for row in results(service, once)["data"]]
    seeds = [asked.sampling.seed for asked in service.engine.asked]
    batch = make(service, titles(12))["id"]

    async def die():
        runner = BatchRunner(service.gateway, service.gateway.batches)
        runner.start()
        while show_state(service, batch)["written"] < 3:  # noqa: ASYNC110 - another thread writes
            await asyncio.sleep(0.005)
        for task in [runner._main, *runner._tasks]:
            task.cancel()  # without stop(): its lease stays

    asyncio.run(die())
    left = show_state(service, batch)
    assert 3 <= left["written"] < 12
    other = BatchRunner(service.gateway, service.gateway.batches)
    repository = service.gateway.batches.repository
    now = time.time()
    assert repository.lease(other._owner, now=now, until=now + LEASE_S) == []
    with sqlite3.connect(service.config.state / "serving.db") as database:
        database.execute("UPDATE copy_batch SET leased_until = ?", [now - 1])
    work(service, done(service))
    assert show_state(service, batch)["written"] == 12
    assert len(wanted) == 12
    asked = [one.sampling.seed for one in service.engine.asked][len(seeds) :]
    # Where copy was refused, the next candidates have the next seeds.
    again = [seed for seed in asked if not {seed - 1, seed - 2} & set(asked)]
    assert 12 <= len(again) <= 12 + service.config.batch_rows  # rows that were being written
    assert len(set(again)) == 12  # a row has its seed for good


def show_state(service, batch):
    return service.gateway.batches.show("acme", batch)


def test_tenants_take_turns(scripted):
    service = scripted("A warm lamp.", batch_rows=1)
    service.engine.stats = idle
    for tenant, count in (("acme", 12), ("bolt", 3)):
        make(service, titles(count), tenant=tenant)
    work(service, done(service))
    order = [asked.tenant for asked in service.engine.asked]
    assert order[:6].count("bolt") == 3


async def idle():
    return EngineStats(
        running=0, waiting=0, adapters=0, adapter_loads=0, tokens=0, prefix_hits=0, prefix_misses=0
    )


def test_a_batch_takes_its_share_of_the_engine_and_live_requests_the_rest(make_service):
    """Eight rows, two of them for batches: six live requests never wait for a row."""
    service = make_service(batch_rows=2, max_batch=8)
    batch = make(service, titles(30), defaults={"max_tokens": 40, "min_tokens": 40})["id"]
    seen = []

    async def live(runner):
        async def watch():
            while True:
                stats = await service.engine.stats()
                seen.append((stats.running, stats.waiting, sum(runner._tasks.values())))
                await asyncio.sleep(0.002)

        watching = asyncio.create_task(watch())
        while not any(of_batch == 2 for _, _, of_batch in seen):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        async with service.client() as client:
            body = {"prompt": "Once", "max_tokens": 60, "min_tokens": 60}
            asked = (client.post("/v1/completions", json=body) for _ in range(6))
            answers = await asyncio.gather(*asked)
        watching.cancel()
        return [answer.status_code for answer in answers]

    assert (
        work(service, lambda: show_state(service, batch)["written"] > 3, beside=live) == [200] * 6
    )
    assert max(of_batch for _, _, of_batch in seen) == 2
    # Who waits does so for the turn of its prompt, not for a row: all are in the engine.
    assert 2 < max(running + waiting for running, waiting, _ in seen) <= 8


def test_no_row_is_begun_while_the_engine_is_full(scripted):
    service = scripted("A warm lamp.")

    async def full():
        stats = await idle()
        return EngineStats(
            **{n: getattr(stats, n) for n in EngineStats.__slots__} | {"running": 16}
        )

    service.engine.stats = full
    batch = make(service, titles(3))["id"]
    looked = iter(range(20))
    work(service, lambda: next(looked, None) is None)
    assert service.engine.asked == []
    assert show(service, batch)["written"] == 0


def test_a_used_up_quota_holds_a_batch_up_and_says_so(service):
    service.gateway.quotas.set("acme", tokens_per_day=900)
    fields = {"max_tokens": 60, "min_tokens": 60, "seed": 1}
    batch = make(service, titles(20), defaults=fields)["id"]
    work(service, lambda: show_state(service, batch)["state"] == "waiting")
    held = show(service, batch)
    assert held["failed"] == 0
    assert 0 < held["written"] < 20
    assert "Quota of 900 tokens a day" in held["reason"]
    service.gateway.quotas.set("acme", tokens_per_day=10**6)
    work(service, done(service))
    assert (show(service, batch)["written"], show(service, batch)["reason"]) == (20, "")


@pytest.mark.parametrize("times", [2, 3])
def test_a_row_that_fails_for_no_known_reason_is_tried_three_times(service, monkeypatch, times):
    asked = []

    async def failing(gateway, asked_, body):
        asked.append(body.title)
        if body.title == "Lamp 1" and asked.count("Lamp 1") <= times:
            raise OSError("the disk is full")
        return await begin_copy(gateway, asked_, body)

    monkeypatch.setattr("handbill.serving.batch.runner.begin_copy", failing)

    def slow(repository, *args, **kwargs):
        found = waiting(repository, *args, **kwargs)
        time.sleep(0.05)  # long enough for a row to fail meanwhile
        return found

    waiting = BatchRepository.waiting
    monkeypatch.setattr(BatchRepository, "waiting", slow)
    monkeypatch.setattr("handbill.serving.batch.runner._LONGEST_PAUSE_S", 0.02)
    batch = make(service, titles(3))["id"]
    work(service, done(service))
    assert asked.count("Lamp 1") == 3
    outcome = results(service, batch)["data"][1]
    assert ("result" in outcome) == (times == 2)
    assert times == 2 or outcome["error"]["code"] == "internal_error"
    assert show(service, batch)["written"] == (3 if times == 2 else 2)


def test_deleting_stops_a_batch_and_leaves_nothing(service):
    batch = make(service, titles(50))["id"]
    work(service, lambda: show_state(service, batch)["written"] > 2)
    assert service.send("DELETE", f"/v1/copy/batch/{batch}").status_code == 204
    assert service.send("GET", f"/v1/copy/batch/{batch}").status_code == 404
    with sqlite3.connect(service.config.state / "serving.db") as database:
        assert database.execute("SELECT count(*) FROM copy_batch_row").fetchone() == (0,)


def test_results_expire_and_go_when_their_tenant_is_forgotten(service):
    repository = service.gateway.batches.repository
    batch = make(service, titles(1))["id"]
    work(service, done(service))
    assert repository.purge(utc_now()) == 0
    assert repository.purge(utc_now() + timedelta(days=8)) == 1
    make(service, titles(2))
    make(service, titles(2), tenant="bolt")
    service.gateway.feedback.forget_tenant("acme")
    assert service.gateway.batches.list("acme") == []
    assert len(service.gateway.batches.list("bolt")) == 1
    assert batch


def test_no_text_of_a_row_lies_in_the_database_in_the_clear(service, caplog):
    make(service, titles(2, shopper="reads at night"), defaults=COPY | {"tone": "elegant"})
    work(service, done(service))
    raw = b"".join(file.read_bytes() for file in service.config.state.glob("serving.db*"))
    for text in (b"Lamp 1", b"reads at night", b"velvety", b"sku-1"):
        assert text not in raw
        assert text.decode() not in caplog.text
